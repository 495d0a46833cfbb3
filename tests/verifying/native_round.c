/* Signs and verifies in every native way there is, without Python: for sanitizers, and for processors on
 * which the tests do not run. Prints what it used; exits with 1 if anything disagrees. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sm2_sign.h"
#include "sm2_verify.h"
#include "sm3.h"

enum { ITEMS = 48 };

static uint32_t seed = 1;
static int wrong;

static void fill(uint8_t *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        bytes[i] = (uint8_t)((seed = seed * 1103515245 + 12345) >> 16);
    bytes[0] &= 0x7f; /* below n, where that matters */
}

static uint8_t digests[ITEMS][32], nonces[ITEMS][32], signatures[ITEMS][64], status[ITEMS];

static void verify_all(void (*verify)(void *, const sm2_item *, size_t), void *scratch,
                       const sm2_affine *table, const sm2_affine *point)
{
    sm2_item items[ITEMS];
    for (size_t i = 0; i < ITEMS; i++)
        items[i] = (sm2_item){digests[i], signatures[i], table, point, &status[i]};
    for (size_t count = 1; count <= ITEMS; count += 9) {
        memset(status, 9, sizeof status);
        verify(scratch, items, count);
        for (size_t i = 0; i < count; i++)
            wrong += status[i] != (i % 5 != 3);
    }
}

static void hash_all(void)
{
    static uint8_t data[4000];
    uint8_t many[40 * 32], one[32];
    sm3_message messages[40];
    sm3_stream starts[3];
    fill(data, sizeof data);
    for (size_t i = 0; i < 3; i++) {
        sm3_init(&starts[i]);
        sm3_update(&starts[i], data, i * 77);
    }
    for (size_t i = 0; i < 40; i++)
        messages[i] = (sm3_message){data + i, i * i * 2, i % 4 < 3 ? &starts[i % 4] : NULL};
    sm3_many(messages, 40, many);
    for (size_t i = 0; i < 40; i++) {
        sm3_stream stream;
        sm3_init(&stream);
        sm3_update(&stream, data, i % 4 < 3 ? i % 4 * 77 : 0);
        sm3_update(&stream, messages[i].data, messages[i].len);
        sm3_final(&stream, one);
        wrong += memcmp(one, many + 32 * i, 32) != 0;
    }
}

int main(void)
{
    const size_t table_bytes = SM2_COMB_POINTS(KEY_WIDTH) * sizeof(sm2_affine);
    sm2_affine *table = aligned_alloc(64, table_bytes), point;
    void *scalar = sm2_scalar_scratch_new(), *lanes = sm2_lanes_available() ? sm2_lanes_scratch_new() : NULL;
    uint8_t secret[32], public[64], eight[8][64], ok[8];
    sm2_signing_key key;
    for (int round = 0; round < 2; round++) {
        fill(secret, 32);
        if (sm2_signing_key_init(&key, secret) || sm2_public_from_private(secret, public) ||
            !sm2_affine_load(&point, public))
            return 1;
        for (size_t i = 0; i < ITEMS; i++) {
            fill(digests[i], 32);
            fill(nonces[i], 32);
            wrong += sm2_sign_with_nonce(&key, digests[i], nonces[i], signatures[i]) != 1;
        }
        for (size_t i = 0; sm2_sign8_available() && i < ITEMS; i += 8) {
            sm2_sign8(&key, (const uint8_t(*)[32])(digests + i), (const uint8_t(*)[32])(nonces + i), eight,
                      ok);
            wrong += memcmp(eight, signatures + i, sizeof eight) != 0;
        }
        for (size_t i = 3; i < ITEMS; i += 5)
            signatures[i][i] ^= 4;
        wrong += sm2_scalar_table(table, &point) != 0;
        verify_all(sm2_scalar_verify, scalar, NULL, &point);
        verify_all(sm2_scalar_verify, scalar, table, &point);
        if (lanes != NULL) {
            wrong += sm2_lanes_table(table, &point) != 0;
            verify_all(sm2_lanes_verify, lanes, NULL, &point);
            verify_all(sm2_lanes_verify, lanes, table, &point);
        }
    }
    hash_all();
    printf("scalar%s%s: %d wrong\n", lanes ? ", lanes" : "", sm2_sign8_available() ? ", sign8" : "", wrong);
    free(table);
    free(scalar);
    free(lanes);
    return wrong != 0;
}
