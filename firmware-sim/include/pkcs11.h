/* PKCS#11 2.40 and 3.0: the types, numbers and entry points this project uses.
 *
 * Written from the facts of the OASIS specifications (base 2.40 and 3.0, current mechanisms 3.0), so that a
 * fresh machine needs no further package. It is not a complete header: mechanisms nobody here speaks are left
 * out. The entry points stand in ONE list each; prototypes, function lists, fault names and export checks are
 * all made from it, so they cannot disagree.
 *
 * Unix only: structures are packed naturally, function pointers carry no calling convention.
 */
#ifndef FIRMWARE_SIM_PKCS11_H
#define FIRMWARE_SIM_PKCS11_H

#ifdef __cplusplus
extern "C" {
#endif

typedef unsigned char CK_BYTE, CK_CHAR, CK_UTF8CHAR, CK_BBOOL;
typedef unsigned long CK_ULONG, CK_FLAGS, CK_RV, CK_SLOT_ID, CK_SESSION_HANDLE, CK_OBJECT_HANDLE, CK_USER_TYPE,
    CK_STATE, CK_OBJECT_CLASS, CK_KEY_TYPE, CK_CERTIFICATE_TYPE, CK_ATTRIBUTE_TYPE, CK_MECHANISM_TYPE,
    CK_NOTIFICATION, CK_RSA_PKCS_MGF_TYPE;
typedef void *CK_VOID_PTR;
typedef CK_VOID_PTR *CK_VOID_PTR_PTR;
typedef CK_BYTE *CK_BYTE_PTR;
typedef CK_UTF8CHAR *CK_UTF8CHAR_PTR;
typedef CK_ULONG *CK_ULONG_PTR;
typedef CK_SLOT_ID *CK_SLOT_ID_PTR;
typedef CK_SESSION_HANDLE *CK_SESSION_HANDLE_PTR;
typedef CK_OBJECT_HANDLE *CK_OBJECT_HANDLE_PTR;
typedef CK_MECHANISM_TYPE *CK_MECHANISM_TYPE_PTR;

#define CK_TRUE 1
#define CK_FALSE 0
#define CK_UNAVAILABLE_INFORMATION (~0UL)
#define CK_EFFECTIVELY_INFINITE 0UL
#define CK_INVALID_HANDLE 0UL

typedef struct CK_VERSION { CK_BYTE major, minor; } CK_VERSION;

typedef struct CK_INFO {
    CK_VERSION cryptokiVersion;
    CK_UTF8CHAR manufacturerID[32];
    CK_FLAGS flags;
    CK_UTF8CHAR libraryDescription[32];
    CK_VERSION libraryVersion;
} CK_INFO, *CK_INFO_PTR;

typedef struct CK_SLOT_INFO {
    CK_UTF8CHAR slotDescription[64];
    CK_UTF8CHAR manufacturerID[32];
    CK_FLAGS flags;
    CK_VERSION hardwareVersion, firmwareVersion;
} CK_SLOT_INFO, *CK_SLOT_INFO_PTR;

typedef struct CK_TOKEN_INFO {
    CK_UTF8CHAR label[32], manufacturerID[32], model[16];
    CK_CHAR serialNumber[16];
    CK_FLAGS flags;
    CK_ULONG ulMaxSessionCount, ulSessionCount, ulMaxRwSessionCount, ulRwSessionCount, ulMaxPinLen, ulMinPinLen,
        ulTotalPublicMemory, ulFreePublicMemory, ulTotalPrivateMemory, ulFreePrivateMemory;
    CK_VERSION hardwareVersion, firmwareVersion;
    CK_CHAR utcTime[16];
} CK_TOKEN_INFO, *CK_TOKEN_INFO_PTR;

typedef struct CK_SESSION_INFO {
    CK_SLOT_ID slotID;
    CK_STATE state;
    CK_FLAGS flags;
    CK_ULONG ulDeviceError;
} CK_SESSION_INFO, *CK_SESSION_INFO_PTR;

typedef struct CK_ATTRIBUTE {
    CK_ATTRIBUTE_TYPE type;
    CK_VOID_PTR pValue;
    CK_ULONG ulValueLen;
} CK_ATTRIBUTE, *CK_ATTRIBUTE_PTR;

typedef struct CK_DATE { CK_CHAR year[4], month[2], day[2]; } CK_DATE;

typedef struct CK_MECHANISM {
    CK_MECHANISM_TYPE mechanism;
    CK_VOID_PTR pParameter;
    CK_ULONG ulParameterLen;
} CK_MECHANISM, *CK_MECHANISM_PTR;

typedef struct CK_MECHANISM_INFO { CK_ULONG ulMinKeySize, ulMaxKeySize; CK_FLAGS flags; } CK_MECHANISM_INFO,
    *CK_MECHANISM_INFO_PTR;

typedef CK_RV (*CK_NOTIFY)(CK_SESSION_HANDLE, CK_NOTIFICATION, CK_VOID_PTR);
typedef CK_RV (*CK_CREATEMUTEX)(CK_VOID_PTR_PTR);
typedef CK_RV (*CK_DESTROYMUTEX)(CK_VOID_PTR);
typedef CK_RV (*CK_LOCKMUTEX)(CK_VOID_PTR);
typedef CK_RV (*CK_UNLOCKMUTEX)(CK_VOID_PTR);

typedef struct CK_C_INITIALIZE_ARGS {
    CK_CREATEMUTEX CreateMutex;
    CK_DESTROYMUTEX DestroyMutex;
    CK_LOCKMUTEX LockMutex;
    CK_UNLOCKMUTEX UnlockMutex;
    CK_FLAGS flags;
    CK_VOID_PTR pReserved;
} CK_C_INITIALIZE_ARGS, *CK_C_INITIALIZE_ARGS_PTR;

typedef struct CK_RSA_PKCS_PSS_PARAMS {
    CK_MECHANISM_TYPE hashAlg;
    CK_RSA_PKCS_MGF_TYPE mgf;
    CK_ULONG sLen;
} CK_RSA_PKCS_PSS_PARAMS;

typedef struct CK_INTERFACE {
    CK_UTF8CHAR *pInterfaceName;
    CK_VOID_PTR pFunctionList;
    CK_FLAGS flags;
} CK_INTERFACE, *CK_INTERFACE_PTR, **CK_INTERFACE_PTR_PTR;

typedef struct CK_FUNCTION_LIST CK_FUNCTION_LIST, *CK_FUNCTION_LIST_PTR, **CK_FUNCTION_LIST_PTR_PTR;
typedef struct CK_FUNCTION_LIST_3_0 CK_FUNCTION_LIST_3_0;

/* The 68 entry points of 2.40, in the order of its function list. */
#define CK_FUNCTIONS_2_40(F) \
    F(C_Initialize, (CK_VOID_PTR args)) \
    F(C_Finalize, (CK_VOID_PTR reserved)) \
    F(C_GetInfo, (CK_INFO_PTR info)) \
    F(C_GetFunctionList, (CK_FUNCTION_LIST_PTR_PTR list)) \
    F(C_GetSlotList, (CK_BBOOL present, CK_SLOT_ID_PTR slots, CK_ULONG_PTR count)) \
    F(C_GetSlotInfo, (CK_SLOT_ID slot, CK_SLOT_INFO_PTR info)) \
    F(C_GetTokenInfo, (CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info)) \
    F(C_GetMechanismList, (CK_SLOT_ID slot, CK_MECHANISM_TYPE_PTR list, CK_ULONG_PTR count)) \
    F(C_GetMechanismInfo, (CK_SLOT_ID slot, CK_MECHANISM_TYPE type, CK_MECHANISM_INFO_PTR info)) \
    F(C_InitToken, (CK_SLOT_ID slot, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len, CK_UTF8CHAR_PTR label)) \
    F(C_InitPIN, (CK_SESSION_HANDLE session, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len)) \
    F(C_SetPIN, (CK_SESSION_HANDLE session, CK_UTF8CHAR_PTR old_pin, CK_ULONG old_len, CK_UTF8CHAR_PTR new_pin, \
                 CK_ULONG new_len)) \
    F(C_OpenSession, (CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR application, CK_NOTIFY notify, \
                      CK_SESSION_HANDLE_PTR session)) \
    F(C_CloseSession, (CK_SESSION_HANDLE session)) \
    F(C_CloseAllSessions, (CK_SLOT_ID slot)) \
    F(C_GetSessionInfo, (CK_SESSION_HANDLE session, CK_SESSION_INFO_PTR info)) \
    F(C_GetOperationState, (CK_SESSION_HANDLE session, CK_BYTE_PTR state, CK_ULONG_PTR state_len)) \
    F(C_SetOperationState, (CK_SESSION_HANDLE session, CK_BYTE_PTR state, CK_ULONG state_len, \
                            CK_OBJECT_HANDLE encryption_key, CK_OBJECT_HANDLE authentication_key)) \
    F(C_Login, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len)) \
    F(C_Logout, (CK_SESSION_HANDLE session)) \
    F(C_CreateObject, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count, \
                       CK_OBJECT_HANDLE_PTR object)) \
    F(C_CopyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes, \
                     CK_ULONG count, CK_OBJECT_HANDLE_PTR copy)) \
    F(C_DestroyObject, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object)) \
    F(C_GetObjectSize, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ULONG_PTR size)) \
    F(C_GetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes, \
                            CK_ULONG count)) \
    F(C_SetAttributeValue, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE object, CK_ATTRIBUTE_PTR attributes, \
                            CK_ULONG count)) \
    F(C_FindObjectsInit, (CK_SESSION_HANDLE session, CK_ATTRIBUTE_PTR attributes, CK_ULONG count)) \
    F(C_FindObjects, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE_PTR objects, CK_ULONG max, CK_ULONG_PTR found)) \
    F(C_FindObjectsFinal, (CK_SESSION_HANDLE session)) \
    F(C_EncryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_Encrypt, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                  CK_ULONG_PTR out_len)) \
    F(C_EncryptUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                        CK_ULONG_PTR out_len)) \
    F(C_EncryptFinal, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_DecryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_Decrypt, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                  CK_ULONG_PTR out_len)) \
    F(C_DecryptUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                        CK_ULONG_PTR out_len)) \
    F(C_DecryptFinal, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_DigestInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism)) \
    F(C_Digest, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                 CK_ULONG_PTR out_len)) \
    F(C_DigestUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len)) \
    F(C_DigestKey, (CK_SESSION_HANDLE session, CK_OBJECT_HANDLE key)) \
    F(C_DigestFinal, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_SignInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_Sign, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_SignUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len)) \
    F(C_SignFinal, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_SignRecoverInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_SignRecover, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                      CK_ULONG_PTR out_len)) \
    F(C_VerifyInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_Verify, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR signature, \
                 CK_ULONG signature_len)) \
    F(C_VerifyUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len)) \
    F(C_VerifyFinal, (CK_SESSION_HANDLE session, CK_BYTE_PTR signature, CK_ULONG signature_len)) \
    F(C_VerifyRecoverInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_VerifyRecover, (CK_SESSION_HANDLE session, CK_BYTE_PTR signature, CK_ULONG signature_len, \
                        CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_DigestEncryptUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                              CK_ULONG_PTR out_len)) \
    F(C_DecryptDigestUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                              CK_ULONG_PTR out_len)) \
    F(C_SignEncryptUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                            CK_ULONG_PTR out_len)) \
    F(C_DecryptVerifyUpdate, (CK_SESSION_HANDLE session, CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, \
                              CK_ULONG_PTR out_len)) \
    F(C_GenerateKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR attributes, \
                      CK_ULONG count, CK_OBJECT_HANDLE_PTR key)) \
    F(C_GenerateKeyPair, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_ATTRIBUTE_PTR public_attributes, \
                          CK_ULONG public_count, CK_ATTRIBUTE_PTR private_attributes, CK_ULONG private_count, \
                          CK_OBJECT_HANDLE_PTR public_key, CK_OBJECT_HANDLE_PTR private_key)) \
    F(C_WrapKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE wrapping_key, \
                  CK_OBJECT_HANDLE key, CK_BYTE_PTR wrapped, CK_ULONG_PTR wrapped_len)) \
    F(C_UnwrapKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE unwrapping_key, \
                    CK_BYTE_PTR wrapped, CK_ULONG wrapped_len, CK_ATTRIBUTE_PTR attributes, CK_ULONG count, \
                    CK_OBJECT_HANDLE_PTR key)) \
    F(C_DeriveKey, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE base_key, \
                    CK_ATTRIBUTE_PTR attributes, CK_ULONG count, CK_OBJECT_HANDLE_PTR key)) \
    F(C_SeedRandom, (CK_SESSION_HANDLE session, CK_BYTE_PTR seed, CK_ULONG seed_len)) \
    F(C_GenerateRandom, (CK_SESSION_HANDLE session, CK_BYTE_PTR out, CK_ULONG out_len)) \
    F(C_GetFunctionStatus, (CK_SESSION_HANDLE session)) \
    F(C_CancelFunction, (CK_SESSION_HANDLE session)) \
    F(C_WaitForSlotEvent, (CK_FLAGS flags, CK_SLOT_ID_PTR slot, CK_VOID_PTR reserved))

/* The 24 entry points that 3.0 adds, in the order of its function list. */
#define CK_FUNCTIONS_3_0(F) \
    F(C_GetInterfaceList, (CK_INTERFACE_PTR list, CK_ULONG_PTR count)) \
    F(C_GetInterface, (CK_UTF8CHAR_PTR name, CK_VERSION *version, CK_INTERFACE_PTR_PTR interface, CK_FLAGS flags)) \
    F(C_LoginUser, (CK_SESSION_HANDLE session, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG pin_len, \
                    CK_UTF8CHAR_PTR username, CK_ULONG username_len)) \
    F(C_SessionCancel, (CK_SESSION_HANDLE session, CK_FLAGS flags)) \
    F(C_MessageEncryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_EncryptMessage, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                         CK_BYTE_PTR associated, CK_ULONG associated_len, CK_BYTE_PTR in, CK_ULONG in_len, \
                         CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_EncryptMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                              CK_BYTE_PTR associated, CK_ULONG associated_len)) \
    F(C_EncryptMessageNext, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                             CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len, \
                             CK_FLAGS flags)) \
    F(C_MessageEncryptFinal, (CK_SESSION_HANDLE session)) \
    F(C_MessageDecryptInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_DecryptMessage, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                         CK_BYTE_PTR associated, CK_ULONG associated_len, CK_BYTE_PTR in, CK_ULONG in_len, \
                         CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_DecryptMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                              CK_BYTE_PTR associated, CK_ULONG associated_len)) \
    F(C_DecryptMessageNext, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                             CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len, \
                             CK_FLAGS flags)) \
    F(C_MessageDecryptFinal, (CK_SESSION_HANDLE session)) \
    F(C_MessageSignInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_SignMessage, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR in, \
                      CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_SignMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len)) \
    F(C_SignMessageNext, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                          CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR out, CK_ULONG_PTR out_len)) \
    F(C_MessageSignFinal, (CK_SESSION_HANDLE session)) \
    F(C_MessageVerifyInit, (CK_SESSION_HANDLE session, CK_MECHANISM_PTR mechanism, CK_OBJECT_HANDLE key)) \
    F(C_VerifyMessage, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, CK_BYTE_PTR in, \
                        CK_ULONG in_len, CK_BYTE_PTR signature, CK_ULONG signature_len)) \
    F(C_VerifyMessageBegin, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len)) \
    F(C_VerifyMessageNext, (CK_SESSION_HANDLE session, CK_VOID_PTR parameter, CK_ULONG parameter_len, \
                            CK_BYTE_PTR in, CK_ULONG in_len, CK_BYTE_PTR signature, CK_ULONG signature_len)) \
    F(C_MessageVerifyFinal, (CK_SESSION_HANDLE session))

/* A module built with hidden visibility defines CK_EXPORT so that its entry points are seen. */
#ifndef CK_EXPORT
#define CK_EXPORT
#endif
#define CK_PROTOTYPE(name, arguments) CK_EXPORT CK_RV name arguments;
CK_FUNCTIONS_2_40(CK_PROTOTYPE)
CK_FUNCTIONS_3_0(CK_PROTOTYPE)
#undef CK_PROTOTYPE

#define CK_MEMBER(name, arguments) CK_RV (*name) arguments;
struct CK_FUNCTION_LIST {
    CK_VERSION version;
    CK_FUNCTIONS_2_40(CK_MEMBER)
};
struct CK_FUNCTION_LIST_3_0 {
    CK_VERSION version;
    CK_FUNCTIONS_2_40(CK_MEMBER)
    CK_FUNCTIONS_3_0(CK_MEMBER)
};
#undef CK_MEMBER

/* Return values; one list, because the fault plan names them. */
#define CK_RETURN_VALUES(R) \
    R(CKR_OK, 0x000UL) R(CKR_CANCEL, 0x001UL) R(CKR_HOST_MEMORY, 0x002UL) R(CKR_SLOT_ID_INVALID, 0x003UL) \
    R(CKR_GENERAL_ERROR, 0x005UL) R(CKR_FUNCTION_FAILED, 0x006UL) R(CKR_ARGUMENTS_BAD, 0x007UL) \
    R(CKR_NO_EVENT, 0x008UL) R(CKR_NEED_TO_CREATE_THREADS, 0x009UL) R(CKR_CANT_LOCK, 0x00AUL) \
    R(CKR_ATTRIBUTE_READ_ONLY, 0x010UL) R(CKR_ATTRIBUTE_SENSITIVE, 0x011UL) \
    R(CKR_ATTRIBUTE_TYPE_INVALID, 0x012UL) R(CKR_ATTRIBUTE_VALUE_INVALID, 0x013UL) \
    R(CKR_ACTION_PROHIBITED, 0x01BUL) R(CKR_DATA_INVALID, 0x020UL) R(CKR_DATA_LEN_RANGE, 0x021UL) \
    R(CKR_DEVICE_ERROR, 0x030UL) R(CKR_DEVICE_MEMORY, 0x031UL) R(CKR_DEVICE_REMOVED, 0x032UL) \
    R(CKR_ENCRYPTED_DATA_INVALID, 0x040UL) R(CKR_ENCRYPTED_DATA_LEN_RANGE, 0x041UL) \
    R(CKR_FUNCTION_CANCELED, 0x050UL) R(CKR_FUNCTION_NOT_PARALLEL, 0x051UL) \
    R(CKR_FUNCTION_NOT_SUPPORTED, 0x054UL) R(CKR_KEY_HANDLE_INVALID, 0x060UL) R(CKR_KEY_SIZE_RANGE, 0x062UL) \
    R(CKR_KEY_TYPE_INCONSISTENT, 0x063UL) R(CKR_KEY_NOT_NEEDED, 0x064UL) R(CKR_KEY_CHANGED, 0x065UL) \
    R(CKR_KEY_NEEDED, 0x066UL) R(CKR_KEY_INDIGESTIBLE, 0x067UL) R(CKR_KEY_FUNCTION_NOT_PERMITTED, 0x068UL) \
    R(CKR_KEY_NOT_WRAPPABLE, 0x069UL) R(CKR_KEY_UNEXTRACTABLE, 0x06AUL) R(CKR_MECHANISM_INVALID, 0x070UL) \
    R(CKR_MECHANISM_PARAM_INVALID, 0x071UL) R(CKR_OBJECT_HANDLE_INVALID, 0x082UL) \
    R(CKR_OPERATION_ACTIVE, 0x090UL) R(CKR_OPERATION_NOT_INITIALIZED, 0x091UL) R(CKR_PIN_INCORRECT, 0x0A0UL) \
    R(CKR_PIN_INVALID, 0x0A1UL) R(CKR_PIN_LEN_RANGE, 0x0A2UL) R(CKR_PIN_EXPIRED, 0x0A3UL) \
    R(CKR_PIN_LOCKED, 0x0A4UL) R(CKR_SESSION_CLOSED, 0x0B0UL) R(CKR_SESSION_COUNT, 0x0B1UL) \
    R(CKR_SESSION_HANDLE_INVALID, 0x0B3UL) R(CKR_SESSION_PARALLEL_NOT_SUPPORTED, 0x0B4UL) \
    R(CKR_SESSION_READ_ONLY, 0x0B5UL) R(CKR_SESSION_EXISTS, 0x0B6UL) R(CKR_SESSION_READ_ONLY_EXISTS, 0x0B7UL) \
    R(CKR_SESSION_READ_WRITE_SO_EXISTS, 0x0B8UL) R(CKR_SIGNATURE_INVALID, 0x0C0UL) \
    R(CKR_SIGNATURE_LEN_RANGE, 0x0C1UL) R(CKR_TEMPLATE_INCOMPLETE, 0x0D0UL) \
    R(CKR_TEMPLATE_INCONSISTENT, 0x0D1UL) R(CKR_TOKEN_NOT_PRESENT, 0x0E0UL) \
    R(CKR_TOKEN_NOT_RECOGNIZED, 0x0E1UL) R(CKR_TOKEN_WRITE_PROTECTED, 0x0E2UL) \
    R(CKR_UNWRAPPING_KEY_HANDLE_INVALID, 0x0F0UL) R(CKR_UNWRAPPING_KEY_SIZE_RANGE, 0x0F1UL) \
    R(CKR_UNWRAPPING_KEY_TYPE_INCONSISTENT, 0x0F2UL) R(CKR_USER_ALREADY_LOGGED_IN, 0x100UL) \
    R(CKR_USER_NOT_LOGGED_IN, 0x101UL) R(CKR_USER_PIN_NOT_INITIALIZED, 0x102UL) \
    R(CKR_USER_TYPE_INVALID, 0x103UL) R(CKR_USER_ANOTHER_ALREADY_LOGGED_IN, 0x104UL) \
    R(CKR_USER_TOO_MANY_TYPES, 0x105UL) R(CKR_WRAPPED_KEY_INVALID, 0x110UL) \
    R(CKR_WRAPPED_KEY_LEN_RANGE, 0x112UL) R(CKR_WRAPPING_KEY_HANDLE_INVALID, 0x113UL) \
    R(CKR_WRAPPING_KEY_SIZE_RANGE, 0x114UL) R(CKR_WRAPPING_KEY_TYPE_INCONSISTENT, 0x115UL) \
    R(CKR_RANDOM_SEED_NOT_SUPPORTED, 0x120UL) R(CKR_RANDOM_NO_RNG, 0x121UL) \
    R(CKR_DOMAIN_PARAMS_INVALID, 0x130UL) R(CKR_CURVE_NOT_SUPPORTED, 0x140UL) \
    R(CKR_BUFFER_TOO_SMALL, 0x150UL) R(CKR_SAVED_STATE_INVALID, 0x160UL) R(CKR_INFORMATION_SENSITIVE, 0x170UL) \
    R(CKR_STATE_UNSAVEABLE, 0x180UL) R(CKR_CRYPTOKI_NOT_INITIALIZED, 0x190UL) \
    R(CKR_CRYPTOKI_ALREADY_INITIALIZED, 0x191UL) R(CKR_MUTEX_BAD, 0x1A0UL) R(CKR_MUTEX_NOT_LOCKED, 0x1A1UL) \
    R(CKR_FUNCTION_REJECTED, 0x200UL) R(CKR_OPERATION_CANCEL_FAILED, 0x202UL)
enum {
#define CK_RETURN_VALUE(name, number) name = (int)(number),
    CK_RETURN_VALUES(CK_RETURN_VALUE)
#undef CK_RETURN_VALUE
};

/* Flags */
#define CKF_TOKEN_PRESENT 0x1UL
#define CKF_REMOVABLE_DEVICE 0x2UL
#define CKF_HW_SLOT 0x4UL
#define CKF_RNG 0x1UL
#define CKF_LOGIN_REQUIRED 0x4UL
#define CKF_USER_PIN_INITIALIZED 0x8UL
#define CKF_TOKEN_INITIALIZED 0x400UL
#define CKF_USER_PIN_COUNT_LOW 0x10000UL
#define CKF_USER_PIN_FINAL_TRY 0x20000UL
#define CKF_USER_PIN_LOCKED 0x40000UL
#define CKF_SO_PIN_COUNT_LOW 0x100000UL
#define CKF_SO_PIN_FINAL_TRY 0x200000UL
#define CKF_SO_PIN_LOCKED 0x400000UL
#define CKF_RW_SESSION 0x2UL
#define CKF_SERIAL_SESSION 0x4UL
#define CKF_MESSAGE_ENCRYPT 0x2UL
#define CKF_MESSAGE_DECRYPT 0x4UL
#define CKF_MESSAGE_SIGN 0x8UL
#define CKF_MESSAGE_VERIFY 0x10UL
#define CKF_MULTI_MESSAGE 0x20UL
#define CKF_FIND_OBJECTS 0x40UL
#define CKF_ENCRYPT 0x100UL
#define CKF_DECRYPT 0x200UL
#define CKF_DIGEST 0x400UL
#define CKF_SIGN 0x800UL
#define CKF_SIGN_RECOVER 0x1000UL
#define CKF_VERIFY 0x2000UL
#define CKF_VERIFY_RECOVER 0x4000UL
#define CKF_GENERATE 0x8000UL
#define CKF_GENERATE_KEY_PAIR 0x10000UL
#define CKF_WRAP 0x20000UL
#define CKF_UNWRAP 0x40000UL
#define CKF_DERIVE 0x80000UL
#define CKF_EC_F_P 0x100000UL
#define CKF_EC_NAMEDCURVE 0x800000UL
#define CKF_EC_UNCOMPRESS 0x1000000UL
#define CKF_LIBRARY_CANT_CREATE_OS_THREADS 0x1UL
#define CKF_OS_LOCKING_OK 0x2UL
#define CKF_DONT_BLOCK 0x1UL
#define CKF_INTERFACE_FORK_SAFE 0x1UL
#define CKF_END_OF_MESSAGE 0x1UL

#define CKU_SO 0UL
#define CKU_USER 1UL
#define CKU_CONTEXT_SPECIFIC 2UL
#define CKS_RO_PUBLIC_SESSION 0UL
#define CKS_RO_USER_FUNCTIONS 1UL
#define CKS_RW_PUBLIC_SESSION 2UL
#define CKS_RW_USER_FUNCTIONS 3UL
#define CKS_RW_SO_FUNCTIONS 4UL

#define CKO_DATA 0UL
#define CKO_CERTIFICATE 1UL
#define CKO_PUBLIC_KEY 2UL
#define CKO_PRIVATE_KEY 3UL
#define CKO_SECRET_KEY 4UL
#define CKC_X_509 0UL

#define CKK_RSA 0x00UL
#define CKK_EC 0x03UL
#define CKK_GENERIC_SECRET 0x10UL
#define CKK_AES 0x1FUL
#define CKK_SHA256_HMAC 0x2BUL
#define CKK_SHA384_HMAC 0x2CUL
#define CKK_SHA512_HMAC 0x2DUL

#define CKA_CLASS 0x000UL
#define CKA_TOKEN 0x001UL
#define CKA_PRIVATE 0x002UL
#define CKA_LABEL 0x003UL
#define CKA_UNIQUE_ID 0x004UL
#define CKA_APPLICATION 0x010UL
#define CKA_VALUE 0x011UL
#define CKA_OBJECT_ID 0x012UL
#define CKA_CERTIFICATE_TYPE 0x080UL
#define CKA_ISSUER 0x081UL
#define CKA_SERIAL_NUMBER 0x082UL
#define CKA_TRUSTED 0x086UL
#define CKA_CERTIFICATE_CATEGORY 0x087UL
#define CKA_JAVA_MIDP_SECURITY_DOMAIN 0x088UL
#define CKA_URL 0x089UL
#define CKA_HASH_OF_SUBJECT_PUBLIC_KEY 0x08AUL
#define CKA_HASH_OF_ISSUER_PUBLIC_KEY 0x08BUL
#define CKA_NAME_HASH_ALGORITHM 0x08CUL
#define CKA_CHECK_VALUE 0x090UL
#define CKA_KEY_TYPE 0x100UL
#define CKA_SUBJECT 0x101UL
#define CKA_ID 0x102UL
#define CKA_SENSITIVE 0x103UL
#define CKA_ENCRYPT 0x104UL
#define CKA_DECRYPT 0x105UL
#define CKA_WRAP 0x106UL
#define CKA_UNWRAP 0x107UL
#define CKA_SIGN 0x108UL
#define CKA_SIGN_RECOVER 0x109UL
#define CKA_VERIFY 0x10AUL
#define CKA_VERIFY_RECOVER 0x10BUL
#define CKA_DERIVE 0x10CUL
#define CKA_START_DATE 0x110UL
#define CKA_END_DATE 0x111UL
#define CKA_MODULUS 0x120UL
#define CKA_MODULUS_BITS 0x121UL
#define CKA_PUBLIC_EXPONENT 0x122UL
#define CKA_PRIVATE_EXPONENT 0x123UL
#define CKA_PRIME_1 0x124UL
#define CKA_PRIME_2 0x125UL
#define CKA_EXPONENT_1 0x126UL
#define CKA_EXPONENT_2 0x127UL
#define CKA_COEFFICIENT 0x128UL
#define CKA_PUBLIC_KEY_INFO 0x129UL
#define CKA_VALUE_LEN 0x161UL
#define CKA_EXTRACTABLE 0x162UL
#define CKA_LOCAL 0x163UL
#define CKA_NEVER_EXTRACTABLE 0x164UL
#define CKA_ALWAYS_SENSITIVE 0x165UL
#define CKA_KEY_GEN_MECHANISM 0x166UL
#define CKA_MODIFIABLE 0x170UL
#define CKA_COPYABLE 0x171UL
#define CKA_DESTROYABLE 0x172UL
#define CKA_EC_PARAMS 0x180UL
#define CKA_EC_POINT 0x181UL
#define CKA_ALWAYS_AUTHENTICATE 0x202UL
#define CKA_WRAP_WITH_TRUSTED 0x210UL
#define CKA_ALLOWED_MECHANISMS 0x40000600UL
#define CKF_ARRAY_ATTRIBUTE 0x40000000UL

#define CKM_RSA_PKCS_KEY_PAIR_GEN 0x000UL
#define CKM_RSA_PKCS 0x001UL
#define CKM_RSA_PKCS_PSS 0x00DUL
#define CKM_SHA256_RSA_PKCS 0x040UL
#define CKM_SHA384_RSA_PKCS 0x041UL
#define CKM_SHA512_RSA_PKCS 0x042UL
#define CKM_SHA256_RSA_PKCS_PSS 0x043UL
#define CKM_SHA384_RSA_PKCS_PSS 0x044UL
#define CKM_SHA512_RSA_PKCS_PSS 0x045UL
#define CKM_SHA_1 0x220UL
#define CKM_SHA256 0x250UL
#define CKM_SHA256_HMAC 0x251UL
#define CKM_SHA224 0x255UL
#define CKM_SHA384 0x260UL
#define CKM_SHA384_HMAC 0x261UL
#define CKM_SHA512 0x270UL
#define CKM_SHA512_HMAC 0x271UL
#define CKM_GENERIC_SECRET_KEY_GEN 0x350UL
#define CKM_EC_KEY_PAIR_GEN 0x1040UL
#define CKM_ECDSA 0x1041UL
#define CKM_ECDSA_SHA256 0x1044UL
#define CKM_ECDSA_SHA384 0x1045UL
#define CKM_ECDSA_SHA512 0x1046UL
#define CKM_AES_KEY_GEN 0x1080UL
#define CKM_AES_ECB 0x1081UL
#define CKM_AES_CBC 0x1082UL
#define CKM_AES_CBC_PAD 0x1085UL
#define CKM_AES_KEY_WRAP 0x2109UL
#define CKM_AES_KEY_WRAP_PAD 0x210AUL
#define CKG_MGF1_SHA256 2UL
#define CKG_MGF1_SHA384 3UL
#define CKG_MGF1_SHA512 4UL

/* SM2, SM3 and SM4 have no standard numbers. SM2 and SM3 carry the numbers that several Chinese vendors share;
 * for SM4 no such custom is known, so these are our own. */
#define CK_VENDOR 0x80000000UL
#define CKK_SM2 (CK_VENDOR + 0x4UL)
#define CKK_SM4 (CK_VENDOR + 0xC5004UL)
#define CKM_SM2 (CK_VENDOR + 0x8000UL)              /* a ready 32-byte e = SM3(Z || M); gives r || s */
#define CKM_SM2_KEY_PAIR_GEN (CK_VENDOR + 0x8001UL)
#define CKM_SM3_SM2 (CK_VENDOR + 0x8100UL)          /* a message; parameter: the signer's ID, default 1234567812345678 */
#define CKM_SM3 (CK_VENDOR + 0x9000UL)
#define CKM_SM4_KEY_GEN (CK_VENDOR + 0xC5400UL)
#define CKM_SM4_ECB (CK_VENDOR + 0xC5401UL)
#define CKM_SM4_CBC (CK_VENDOR + 0xC5402UL)
#define CKM_SM4_CBC_PAD (CK_VENDOR + 0xC5405UL)

#ifdef __cplusplus
}
#endif
#endif
