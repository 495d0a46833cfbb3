/* A PKCS#11 module around another one (SHIM_MODULE), for faults at moments that no signal from outside can hit.
 *
 * SHIM_DIR is a directory that test and shim talk through:
 *   stop-before, stop-after   while the file is there, C_GenerateKeyPair writes reached-before or reached-after and
 *                             waits there for ever, before or after the token has made the pair
 *   logins                    a byte for each C_Login that reaches the token
 * A digest that starts with "KILL" kills the process in C_Sign; one that starts with "LOST" fails as a token that has
 * gone does (CKR_DEVICE_ERROR).
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long CK_ULONG;
typedef CK_ULONG (*function)(CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG, CK_ULONG);

/* CK_FUNCTION_LIST, PKCS#11 2.40: a version, then 68 functions; these are their places. */
enum { GET_FUNCTION_LIST = 3, LOGIN = 18, SIGN = 43, GENERATE_KEY_PAIR = 59, FUNCTIONS = 68 };
struct list {
  unsigned char version[2];
  void *functions[FUNCTIONS];
};

static struct list ours, *theirs;

static void path(char out[4096], const char *name) { snprintf(out, 4096, "%s/%s", getenv("SHIM_DIR"), name); }

static void append(const char *name) {
  char file[4096];
  path(file, name);
  int fd = open(file, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (fd >= 0) {
    if (write(fd, "x", 1) != 1) abort();
    close(fd);
  }
}

static void stop_at(const char *stop, const char *reached) {
  char file[4096];
  path(file, stop);
  if (access(file, F_OK) != 0) return;
  append(reached);
  for (;;) pause();
}

static CK_ULONG login(CK_ULONG a, CK_ULONG b, CK_ULONG c, CK_ULONG d) {
  append("logins");
  return ((function)theirs->functions[LOGIN])(a, b, c, d, 0, 0, 0, 0);
}

static CK_ULONG sign(CK_ULONG session, const unsigned char *data, CK_ULONG len, CK_ULONG signature, CK_ULONG signature_len) {
  if (len >= 4 && memcmp(data, "KILL", 4) == 0) raise(SIGKILL);
  if (len >= 4 && memcmp(data, "LOST", 4) == 0) return 0x30;
  return ((function)theirs->functions[SIGN])(session, (CK_ULONG)data, len, signature, signature_len, 0, 0, 0);
}

static CK_ULONG generate_key_pair(CK_ULONG a, CK_ULONG b, CK_ULONG c, CK_ULONG d, CK_ULONG e, CK_ULONG f, CK_ULONG g,
                                  CK_ULONG h) {
  stop_at("stop-before", "reached-before");
  CK_ULONG rv = ((function)theirs->functions[GENERATE_KEY_PAIR])(a, b, c, d, e, f, g, h);
  stop_at("stop-after", "reached-after");
  return rv;
}

CK_ULONG C_GetFunctionList(struct list **out);
CK_ULONG C_GetFunctionList(struct list **out) {
  if (theirs == NULL) {
    void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW | RTLD_LOCAL);
    CK_ULONG (*get)(struct list **) = module ? (CK_ULONG(*)(struct list **))dlsym(module, "C_GetFunctionList") : NULL;
    if (get == NULL || get(&theirs) != 0) return 5; /* CKR_GENERAL_ERROR */
    ours = *theirs;
    ours.functions[GET_FUNCTION_LIST] = C_GetFunctionList;
    ours.functions[LOGIN] = login;
    ours.functions[SIGN] = sign;
    ours.functions[GENERATE_KEY_PAIR] = generate_key_pair;
  }
  *out = &ours;
  return 0;
}
