/* Eight signatures at a time on AVX-512 IFMA. See sm2_sign.h. SECRET VALUES. */
#include "sm2_sign_steps.h"

int sm2_sign8_available(void)
{
    return 0;
}

void sm2_sign8(const sm2_signing_key *key, const uint8_t e[8][32], const uint8_t k[8][32], uint8_t sig[8][64],
               uint8_t ok[8])
{
    for (int i = 0; i < 8; i++)
        ok[i] = (uint8_t)sm2_sign_with_nonce(key, e[i], k[i], sig[i]);
}
