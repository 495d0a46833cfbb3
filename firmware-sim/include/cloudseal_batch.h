/* The vendor interface "Vendor cloud-seal batch", version 1.0: many signatures in one call.
 *
 * A module that has it answers C_GetInterface((CK_UTF8CHAR_PTR)CLOUDSEAL_BATCH_INTERFACE, NULL or {1, 0},
 * ..). PKCS#11 asks for two calls per signature; a token that computes eight at a time cannot show it through
 * them.
 *
 * Mechanisms: CKM_SM2 (every 32-byte item is e) and CKM_ECDSA on P-256 (every item is the digest).
 */
#ifndef CLOUDSEAL_BATCH_H
#define CLOUDSEAL_BATCH_H

#include "pkcs11.h"

#define CLOUDSEAL_BATCH_INTERFACE "Vendor cloud-seal batch"

enum { CLOUDSEAL_BATCH_DIGEST_LEN = 32, CLOUDSEAL_BATCH_SIGNATURE_LEN = 64 };

typedef struct CLOUDSEAL_BATCH_FUNCTION_LIST {
    CK_VERSION version; /* {1, 0} */

    /* Sign `count` items with one key.
     *
     *   digests     count * 32 bytes
     *   signatures  count * 64 bytes, r || s, written only where the status is 0
     *   statuses    count bytes: 0 signed; 1 failed, nothing of it may be used; 2 not tried
     *   done        how many items were tried, from the front: their statuses are 0 or 1
     *
     * CKR_OK: the call went through, look at the statuses. Any other value: no signature may be used, though
     * some may have been made and counted (as after any lost answer of a token). The session needs no
     * C_SignInit, and an active signing operation of it is not touched. Rules for keys are C_SignInit's. */
    CK_RV (*C_SignBatch)
    (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key, CK_ULONG count,
     CK_BYTE_PTR digests, CK_BYTE_PTR signatures, CK_BYTE_PTR statuses, CK_ULONG_PTR done);
} CLOUDSEAL_BATCH_FUNCTION_LIST;

#endif
