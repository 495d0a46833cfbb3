/* The vendor interface: many signatures with one key in one call. See include/cloudseal_batch.h. */
#include "module.h"

#include "../include/cloudseal_batch.h"

#include <string.h>

CK_RV C_SignBatch(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key, CK_ULONG count,
                  CK_BYTE_PTR digests, CK_BYTE_PTR signatures, CK_BYTE_PTR statuses, CK_ULONG_PTR done);

enum {
    DIGEST_LEN = CLOUDSEAL_BATCH_DIGEST_LEN,
    SIGNATURE_LEN = CLOUDSEAL_BATCH_SIGNATURE_LEN,
    SIGNED = 0,
    FAILED = 1,
    NOT_TRIED = 2,
    BATCH_MAX = 1 << 20, /* a length that no honest caller sends */
    CHUNK = 64,          /* one write of the trace; eight times the widest lanes known */
};

/* A plan that speaks of signatures counts each of them: then they are made one by one. */
static CK_RV one_by_one(struct module *m, struct signing *op, size_t count, const uint8_t *digests,
                        uint8_t *signatures, uint8_t *statuses) {
    for (size_t i = 0; i < count; i++) {
        CK_RV rv =
            signing_compute(m, op, digests + i * DIGEST_LEN, DIGEST_LEN, signatures + i * SIGNATURE_LEN);
        statuses[i] = rv == CKR_OK ? SIGNED : FAILED;
        if (rv != CKR_OK && m->faults.on)
            return rv; /* the token is gone, as far as the caller can tell */
    }
    return CKR_OK;
}

static CK_RV in_lanes(struct module *m, struct signing *op, size_t count, const uint8_t *digests,
                      uint8_t *signatures, uint8_t *statuses) {
    const struct attribute *id = attributes_find(&op->key->attributes, CKA_ID);
    for (size_t at = 0; at < count; at += CHUNK) {
        size_t n = count - at < CHUNK ? count - at : CHUNK;
        uint8_t ok[CHUNK];
        uint64_t done_at_ns = m->timing.service_ns ? timing_book(&m->timing, timing_now(), n) : 0;
        m->engine->sign_many(op->material->sm2, n, (const uint8_t(*)[32])(digests + at * DIGEST_LEN),
                             (uint8_t(*)[64])(signatures + at * SIGNATURE_LEN), ok);
        if (!trace_signatures(&m->trace, id ? id->value : NULL, id ? id->len : 0, op->mechanism->type,
                              digests + at * DIGEST_LEN, DIGEST_LEN, n)) {
            memset(signatures, 0, count * SIGNATURE_LEN);
            memset(statuses, FAILED, count);
            return CKR_DEVICE_ERROR;
        }
        for (size_t i = 0; i < n; i++)
            statuses[at + i] = ok[i] ? SIGNED : FAILED;
        if (done_at_ns)
            timing_wait_until(done_at_ns);
    }
    return CKR_OK;
}

static CK_RV sign_batch(struct module *m, struct session *s, const CK_MECHANISM *given, CK_OBJECT_HANDLE key,
                        CK_ULONG count, const uint8_t *digests, uint8_t *signatures, uint8_t *statuses,
                        CK_ULONG *done) {
    struct signing op = {0};
    *done = 0;
    if (given->mechanism != CKM_SM2 && given->mechanism != CKM_ECDSA)
        return CKR_MECHANISM_INVALID;
    CK_RV rv = signing_begin(m, s, &op, given, key, CKF_SIGN);
    if (rv != CKR_OK)
        return rv;
    memset(statuses, NOT_TRIED, count);
    bool lanes = given->mechanism == CKM_SM2 && m->engine->sign_many && !m->faults.on;
    rv = (lanes ? in_lanes : one_by_one)(m, &op, count, digests, signatures, statuses);
    signing_end(&op);
    for (size_t i = 0; rv == CKR_OK && i < count; i++)
        *done += statuses[i] != NOT_TRIED;
    return rv;
}

CK_RV C_SignBatch(CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key, CK_ULONG count,
                  CK_BYTE_PTR digests, CK_BYTE_PTR signatures, CK_BYTE_PTR statuses, CK_ULONG_PTR done) {
    SESSION_SHIM(C_SignBatch,
                 mechanism && done && count <= BATCH_MAX && (!count || (digests && signatures && statuses)),
                 sign_batch(call.module, s, mechanism, key, count, digests, signatures, statuses, done));
}
