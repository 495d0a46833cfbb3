/* The fast engine's kernel with a known nonce: the example of GB/T 32918.5-2017, A.2, alone and in every lane. */
#include "../../appliance/native/sm2_sign.h"

#include <stdio.h>
#include <string.h>

static void read_hex(uint8_t *out, const char *hex) {
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        *out++ = (uint8_t)byte;
}

int main(void) {
    uint8_t d[32], k[32], e[32], wanted[64], made[64];
    read_hex(d, "3945208F7B2144B13F36E38AC6D39F95889393692860B51A42FB81EF4DF7C5B8");
    read_hex(k, "59276E27D506861A16680F3AD9C02DCCEF3CC1FA3CDBE4CE6D54B80DEAC1BC21");
    read_hex(e, "F0B43E94BA45ACCAACE692ED534382EB17E6AB5A19CE7B31F4486FDFC0D28640");
    read_hex(wanted, "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3"
                     "B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA");
    sm2_signing_key key;
    if (sm2_signing_key_init(&key, d) != 0 || sm2_sign_with_nonce(&key, e, k, made) != 1 ||
        memcmp(made, wanted, sizeof made) != 0)
        return fprintf(stderr, "kernel_test: the example's signature was not made\n"), 1;
    if (!sm2_sign8_available())
        return 0;
    uint8_t es[8][32], ks[8][32], signatures[8][64], ok[8];
    for (int i = 0; i < 8; i++) {
        memcpy(es[i], e, sizeof e);
        memcpy(ks[i], k, sizeof k);
        es[i][0] ^= (uint8_t)i; /* lane 0 is the example; the others must do what the scalar code does */
        ks[i][31] ^= (uint8_t)i;
    }
    memset(ks[5], 0, sizeof ks[5]); /* a nonce that cannot be used, in the middle of good ones */
    sm2_sign8(&key, (const uint8_t(*)[32])es, (const uint8_t(*)[32])ks, signatures, ok);
    for (int i = 0; i < 8; i++)
        if (ok[i] != sm2_sign_with_nonce(&key, es[i], ks[i], made) || memcmp(signatures[i], made, 64) != 0)
            return fprintf(stderr, "kernel_test: lane %d\n", i), 1;
    return ok[5] ? 1 : 0;
}
