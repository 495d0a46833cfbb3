/* The part of PKCS#11 (OASIS, 2.40 and 3.0) that the batch loop calls: types, function tables, return codes.
 *
 * For: building on a machine that has no header package. Written from the specification's tables; not for any other
 * purpose, and nothing is here that `_batch` or `bench/raw_loop.c` does not use.
 *
 * - On Unix the structures have the compiler's own alignment (2.40, 2.1); Windows, which packs them, is not meant.
 * - The tables' order is the interface. A function that is never called is a `ck_unused`: it only holds its place.
 */
#ifndef CLOUD_SEAL_CRYPTOKI_H
#define CLOUD_SEAL_CRYPTOKI_H

typedef unsigned char CK_BYTE;
typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV;
typedef CK_ULONG CK_FLAGS;
typedef CK_ULONG CK_SLOT_ID;
typedef CK_ULONG CK_SESSION_HANDLE;
typedef CK_ULONG CK_OBJECT_HANDLE;

typedef struct {
    CK_BYTE major, minor;
} CK_VERSION;

typedef struct {
    CK_ULONG mechanism;
    void *pParameter;
    CK_ULONG ulParameterLen;
} CK_MECHANISM;

typedef struct {
    CK_ULONG type;
    void *pValue;
    CK_ULONG ulValueLen;
} CK_ATTRIBUTE;

typedef struct {
    void *CreateMutex, *DestroyMutex, *LockMutex, *UnlockMutex;
    CK_FLAGS flags;
    void *pReserved;
} CK_C_INITIALIZE_ARGS;

typedef struct {
    CK_BYTE label[32], manufacturerID[32], model[16], serialNumber[16];
    CK_FLAGS flags;
    CK_ULONG ulMaxSessionCount, ulSessionCount, ulMaxRwSessionCount, ulRwSessionCount, ulMaxPinLen, ulMinPinLen;
    CK_ULONG ulTotalPublicMemory, ulFreePublicMemory, ulTotalPrivateMemory, ulFreePrivateMemory;
    CK_VERSION hardwareVersion, firmwareVersion;
    CK_BYTE utcTime[16];
} CK_TOKEN_INFO;

typedef struct {
    CK_BYTE *pInterfaceName;
    void *pFunctionList;
    CK_FLAGS flags;
} CK_INTERFACE;

typedef void (*ck_unused)(void);

typedef struct {
    CK_VERSION version;
    CK_RV (*C_Initialize)(void *pInitArgs);
    CK_RV (*C_Finalize)(void *pReserved);
    ck_unused C_GetInfo, C_GetFunctionList;
    CK_RV (*C_GetSlotList)(CK_BYTE tokenPresent, CK_SLOT_ID *pSlotList, CK_ULONG *pulCount);
    ck_unused C_GetSlotInfo;
    CK_RV (*C_GetTokenInfo)(CK_SLOT_ID slotID, CK_TOKEN_INFO *pInfo);
    ck_unused C_GetMechanismList, C_GetMechanismInfo, C_InitToken, C_InitPIN, C_SetPIN;
    CK_RV (*C_OpenSession)(CK_SLOT_ID slotID, CK_FLAGS flags, void *pApplication, void *Notify,
                           CK_SESSION_HANDLE *phSession);
    ck_unused C_CloseSession, C_CloseAllSessions, C_GetSessionInfo, C_GetOperationState, C_SetOperationState;
    CK_RV (*C_Login)(CK_SESSION_HANDLE hSession, CK_ULONG userType, CK_BYTE *pPin, CK_ULONG ulPinLen);
    ck_unused C_Logout, C_CreateObject, C_CopyObject, C_DestroyObject, C_GetObjectSize, C_GetAttributeValue;
    ck_unused C_SetAttributeValue;
    CK_RV (*C_FindObjectsInit)(CK_SESSION_HANDLE hSession, CK_ATTRIBUTE *pTemplate, CK_ULONG ulCount);
    CK_RV (*C_FindObjects)(CK_SESSION_HANDLE hSession, CK_OBJECT_HANDLE *phObject, CK_ULONG ulMaxObjectCount,
                           CK_ULONG *pulObjectCount);
    CK_RV (*C_FindObjectsFinal)(CK_SESSION_HANDLE hSession);
    ck_unused C_EncryptInit, C_Encrypt, C_EncryptUpdate, C_EncryptFinal;
    ck_unused C_DecryptInit, C_Decrypt, C_DecryptUpdate, C_DecryptFinal;
    ck_unused C_DigestInit, C_Digest, C_DigestUpdate, C_DigestKey, C_DigestFinal;
    CK_RV (*C_SignInit)(CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey);
    CK_RV (*C_Sign)(CK_SESSION_HANDLE hSession, CK_BYTE *pData, CK_ULONG ulDataLen, CK_BYTE *pSignature,
                    CK_ULONG *pulSignatureLen);
    ck_unused C_SignUpdate, C_SignFinal, C_SignRecoverInit, C_SignRecover;
    ck_unused C_VerifyInit, C_Verify, C_VerifyUpdate, C_VerifyFinal, C_VerifyRecoverInit, C_VerifyRecover;
    ck_unused C_DigestEncryptUpdate, C_DecryptDigestUpdate, C_SignEncryptUpdate, C_DecryptVerifyUpdate;
    ck_unused C_GenerateKey, C_GenerateKeyPair, C_WrapKey, C_UnwrapKey, C_DeriveKey;
    ck_unused C_SeedRandom, C_GenerateRandom, C_GetFunctionStatus, C_CancelFunction, C_WaitForSlotEvent;
} CK_FUNCTION_LIST;

/* 3.0 appends to the table of 2.40; its functions are reached through C_GetInterface("PKCS 11", 3.0). */
typedef struct {
    CK_FUNCTION_LIST v2;
    ck_unused C_GetInterfaceList, C_GetInterface, C_LoginUser, C_SessionCancel;
    ck_unused C_MessageEncryptInit, C_EncryptMessage, C_EncryptMessageBegin, C_EncryptMessageNext;
    ck_unused C_MessageEncryptFinal;
    ck_unused C_MessageDecryptInit, C_DecryptMessage, C_DecryptMessageBegin, C_DecryptMessageNext;
    ck_unused C_MessageDecryptFinal;
    CK_RV (*C_MessageSignInit)(CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey);
    CK_RV (*C_SignMessage)(CK_SESSION_HANDLE hSession, void *pParameter, CK_ULONG ulParameterLen, CK_BYTE *pData,
                           CK_ULONG ulDataLen, CK_BYTE *pSignature, CK_ULONG *pulSignatureLen);
    ck_unused C_SignMessageBegin, C_SignMessageNext;
    CK_RV (*C_MessageSignFinal)(CK_SESSION_HANDLE hSession);
    ck_unused C_MessageVerifyInit, C_VerifyMessage, C_VerifyMessageBegin, C_VerifyMessageNext;
    ck_unused C_MessageVerifyFinal;
} CK_FUNCTION_LIST_3_0;

typedef CK_RV (*CK_C_GetFunctionList)(CK_FUNCTION_LIST **ppFunctionList);
typedef CK_RV (*CK_C_GetInterface)(CK_BYTE *pInterfaceName, CK_VERSION *pVersion, CK_INTERFACE **ppInterface,
                                   CK_FLAGS flags);

/* Our own extension, obtained through C_GetInterface: a whole batch of ready digests in one call (BATCH.md).
 * pDigests is count x 32 bytes, pSignatures count x 64 (r || s), pStatuses one byte each, 0 where it was signed.
 * *pulDone says how many were tried, from the front; a code other than CKR_OK says why it stopped there. */
#define CLOUD_SEAL_BATCH_INTERFACE "Vendor cloud-seal batch"

typedef struct {
    CK_VERSION version;
    CK_RV (*C_SignBatch)(CK_SESSION_HANDLE hSession, CK_MECHANISM *pMechanism, CK_OBJECT_HANDLE hKey, CK_ULONG count,
                         CK_BYTE *pDigests, CK_BYTE *pSignatures, CK_BYTE *pStatuses, CK_ULONG *pulDone);
} CLOUD_SEAL_BATCH_FUNCTIONS;

#define CKF_OS_LOCKING_OK 0x02UL
#define CKF_RW_SESSION 0x02UL
#define CKF_SERIAL_SESSION 0x04UL
#define CKU_USER 1UL
#define CKA_CLASS 0x00UL
#define CKA_LABEL 0x03UL
#define CKA_ID 0x102UL
#define CKO_PRIVATE_KEY 3UL

#define CKR_OK 0x00UL
#define CKR_GENERAL_ERROR 0x05UL
#define CKR_ARGUMENTS_BAD 0x07UL
#define CKR_ACTION_PROHIBITED 0x1BUL
#define CKR_DATA_INVALID 0x20UL
#define CKR_DATA_LEN_RANGE 0x21UL
#define CKR_FUNCTION_CANCELED 0x50UL
#define CKR_FUNCTION_NOT_SUPPORTED 0x54UL
#define CKR_KEY_SIZE_RANGE 0x62UL
#define CKR_KEY_TYPE_INCONSISTENT 0x63UL
#define CKR_KEY_FUNCTION_NOT_PERMITTED 0x68UL
#define CKR_MECHANISM_INVALID 0x70UL
#define CKR_MECHANISM_PARAM_INVALID 0x71UL
#define CKR_CRYPTOKI_NOT_INITIALIZED 0x190UL
#define CKR_FUNCTION_REJECTED 0x200UL

#endif
