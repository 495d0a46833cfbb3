/* The trace: one line for each signature made, written before the signature is handed out.
 *
 * It is the oracle for "nothing signed twice": whatever a client holds must stand here, and what stands here
 * and reached no client is what a lost answer costs. Lines are appended in one write(2) on an O_APPEND
 * descriptor, so processes do not tear each other's lines:
 *
 *     sign pid=<pid> n=<n-th of this process> key=<CKA_ID in hex, or -> mechanism=0x<number> input=<first 32
 * bytes, hex>
 *
 * `input` is what the primitive signed: e for SM2, the digest for ECDSA and RSA. The fault `corrupt` does not
 * change the line: the token believes it has signed.
 */
#ifndef FIRMWARE_SIM_TRACE_H
#define FIRMWARE_SIM_TRACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct trace {
    int fd;                      /* -1: off */
    _Atomic uint64_t signatures; /* of this process since C_Initialize; counted even where the file is off */
};

bool trace_start(struct trace *trace, const char *path, char *message, size_t message_len);
void trace_stop(struct trace *trace);
/* `inputs`: count items of input_len bytes, one after the other. False: not written, the signatures must not
 * leave. */
bool trace_signatures(struct trace *trace, const uint8_t *id, size_t id_len, unsigned long mechanism,
                      const uint8_t *inputs, size_t input_len, size_t count);

#endif
