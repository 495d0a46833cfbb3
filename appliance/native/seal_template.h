/* Seal signatures (SES_Signature, GB/T 38540-2020) by the batch, from a template for each seal.
 *
 * For: what is signed (TBS_Sign) as digests, and the DER of complete values, where all but a few bytes are
 * the same for every signature of a seal. Public values only: no key and no nonce ever comes here.
 *
 *     SES_Signature ::= SEQUENCE { TBS_Sign, cert OCTET STRING, signatureAlgID, signature BIT STRING,
 *                                  timeStamp [0] EXPLICIT BIT STRING OPTIONAL }
 *     TBS_Sign      ::= SEQUENCE { version, eseal, timeInfo, dataHash BIT STRING, propertyInfo IA5String }
 *
 * `body` is version and eseal, tens of kilobytes with the seal's picture; `suffix` is cert and
 * signatureAlgID. A value is head || body || timeInfo || middle || suffix || tail, and only head, middle and
 * tail belong to one item.
 *
 * How the body is hashed once: TBS_Sign begins with its own length, so the bytes before timeInfo are the same
 * for all signatures whose property info is equally long. What the hash function knows after them is kept,
 * one entry for each length, and each item hashes the two or three blocks that are left.
 *
 * A template may be used by any number of threads. */
#ifndef CLOUD_SEAL_TEMPLATE_H
#define CLOUD_SEAL_TEMPLATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    TEMPLATE_P256 = 1, /* the numbers appliance.algorithms.Algorithm has on the wire */
    TEMPLATE_SM2 = 2,
};

enum {
    SEAL_HASH_LEN = 32,
    SEAL_SIGNATURE_LEN = 64,
    SEAL_TIME_LEN = 15,            /* YYYYMMDDHHMMSSZ */
    SEAL_MAX_PROPERTY_LEN = 1024,  /* bounds the entries kept for a template */
    SEAL_MIN_BODY_LEN = 64,        /* what awaits its block at the end of the body is all of the body */
    SEAL_MAX_BODY_LEN = 1 << 20,   /* keeps every length below four bytes */
    SEAL_MAX_SUFFIX_LEN = 1 << 17, /* a certificate has at most 64 KiB */
    SEAL_MAX_STAMP_LEN = 60000,    /* a tail's length has two bytes */
    SEAL_RECORD_LEN = 6,           /* status, head_len, middle_len, tail_len: 1, 1, 2 and 2 bytes */
};

typedef struct seal_template seal_template;

/* NULL: out of memory. The lengths are within the limits above; z is SM2's Z, and NULL for P-256. */
seal_template *seal_template_new(int algorithm, const uint8_t *z, const uint8_t *body, size_t body_len,
                                 const uint8_t *suffix, size_t suffix_len);
void seal_template_free(seal_template *self);

/* Bytes that it holds now; it grows with the lengths of property infos that it meets, up to a bound. */
size_t seal_template_size(seal_template *self);

/* A batch: 32 bytes of data hash an item, and either one property info for all (`shared`) or one each, one
 * after the other. The caller has checked that the lengths are at most SEAL_MAX_PROPERTY_LEN and use up
 * `properties`. */
typedef struct {
    size_t count;
    const uint8_t *time; /* SEAL_TIME_LEN */
    const uint8_t *hashes;
    bool shared;
    const uint16_t *property_lengths; /* one, or count */
    const uint8_t *properties;
} seal_batch;

/* How many of the first lengths that differ are not kept yet, counting no further than `enough`: each costs a
 * hash of the whole body. */
size_t seal_template_cold(seal_template *self, const seal_batch *batch, size_t enough);

/* What each item is signed by: count * 32 bytes. 0, or -1: out of memory. */
int seal_template_digests(seal_template *self, const seal_batch *batch, uint8_t *digests);

/* Time stamp tokens, one after the other; length 0 is an item without one. */
typedef struct {
    const uint32_t *lengths; /* count */
    const uint8_t *tokens;
} seal_stamps;

/* What `seal_template_write` will write: count records, then head, middle and tail of each item. Items whose
 * status is not 0 have none of the three. `stamps` may be NULL. */
size_t seal_template_written_len(const seal_template *self, const seal_batch *batch, const uint8_t *statuses,
                                 const uint8_t *signatures, const seal_stamps *stamps);
void seal_template_write(const seal_template *self, const seal_batch *batch, const uint8_t *statuses,
                         const uint8_t *signatures, const seal_stamps *stamps, uint8_t *out);

#endif
