/* The frames of SIGN and SIGNED, on the wire (appliance/wire.py, PROTOCOL.md) and on the link (appliance_pkcs11/link.py).
 *
 * A number in a frame is used as a length only after it was compared with what there is. */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>

/* wire.py's and link.py's numbers; test_frames.py and test_lane.py compare. Both headers have 16 bytes: u32 payload
 * length, u8 type, 3 bytes zero, u64 request id or sequence. */
enum { HEADER_LEN = 16, DIGEST_LEN = 32, SIGNATURE_LEN = 64, MAX_NAME_LEN = 64 };
enum { WIRE_SIGN = 2, WIRE_SIGNED = 66, WIRE_SIGN_LEN = 36, WIRE_SIGNED_LEN = 32, JOB_AND_INDEX_LEN = 24 };
enum { LINK_SIGN = 4, LINK_SIGNED = 67, LINK_SIGN_LEN = 12, LINK_SIGNED_LEN = 32 };

static inline uint64_t get_number(const uint8_t *at, int len)
{
    uint64_t number = 0;
    while (len--)
        number = number << 8 | *at++;
    return number;
}

static inline uint8_t *put_number(uint8_t *at, uint64_t number, int len)
{
    for (int shift = 8 * (len - 1); shift >= 0; shift -= 8)
        *at++ = (uint8_t)(number >> shift);
    return at;
}

static inline uint8_t *put_header(uint8_t *at, uint64_t payload_len, int type, uint64_t number)
{
    at = put_number(at, payload_len, 4);
    at = put_number(at, (uint64_t)type << 24, 4);
    return put_number(at, number, 8);
}

/* The whole frame of that type at `at`: its payload's length, or -1 where there is none. */
static inline Py_ssize_t payload_of(const uint8_t *at, Py_ssize_t held_len, int type, Py_ssize_t min_len)
{
    if (held_len < HEADER_LEN || at[4] != type || at[5] || at[6] || at[7])
        return -1;
    Py_ssize_t payload_len = (Py_ssize_t)get_number(at, 4);
    return payload_len >= min_len && payload_len <= held_len - HEADER_LEN ? payload_len : -1;
}

#endif
