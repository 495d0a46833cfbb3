/* Signs with d and k marked as undefined, under valgrind's memcheck: every branch and every address that
 * depends on them is then an error. What the signature and the return value tell is public and is marked as
 * such. */
#include <string.h>
#include <valgrind/memcheck.h>

#include "sm2_sign.h"

int main(void)
{
    uint8_t d[32], e[32], k[32], signature[64], point[64];
    sm2_signing_key key;
    int done = 1;
    for (int round = 0; round < 2; round++) {
        memset(d, 0x17 + round, sizeof d);
        memset(e, 0x42, sizeof e);
        memset(k, 0x5a + round, sizeof k);
        VALGRIND_MAKE_MEM_UNDEFINED(d, sizeof d);
        VALGRIND_MAKE_MEM_UNDEFINED(k, sizeof k);
        int initialised = sm2_signing_key_init(&key, d);
        int derived = sm2_public_from_private(d, point);
        int signed_ = sm2_sign_with_nonce(&key, e, k, signature);
        sm2_signing_key_wipe(&key);
        VALGRIND_MAKE_MEM_DEFINED(&initialised, sizeof initialised);
        VALGRIND_MAKE_MEM_DEFINED(&derived, sizeof derived);
        VALGRIND_MAKE_MEM_DEFINED(&signed_, sizeof signed_);
        done &= initialised == 0 && derived == 0 && signed_ == 1;
    }
#ifdef LEAK
    if (k[0] == 0x5a) /* the proof that the method finds something */
        done &= 1;
    else
        done |= 2;
#endif
    return !done;
}
