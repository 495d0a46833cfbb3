/* Settings: read once at C_Initialize from the file named by FIRMWARE_SIM_CONF and from the environment,
 * where FIRMWARE_SIM_<KEY> goes before the file's <key>. An unknown key or a value out of range is fatal. */
#ifndef FIRMWARE_SIM_CONFIG_H
#define FIRMWARE_SIM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>

enum { SETTING_TEXT_MAX = 4096 }; /* PATH_MAX, and room enough for a plan given in the environment */

struct settings {
    char tokens[SETTING_TEXT_MAX];
    char engine[16];
    char faults[SETTING_TEXT_MAX];
    char trace[SETTING_TEXT_MAX];
    bool batch;
    unsigned long kdf_log2n, max_user_failures, max_so_failures;
    unsigned long service_us, engines, round_trip_us;
};

/* False: the message says what is wrong and where. */
bool settings_read(struct settings *settings, char *message, size_t message_len);
/* One `key = value` line; for the fuzzer and for settings_read. */
bool settings_line(struct settings *settings, const char *line, char *message, size_t message_len);
void settings_default(struct settings *settings);

#endif
