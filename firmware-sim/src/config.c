#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum kind { TEXT, NUMBER, SWITCH };

/* Every key, its default and its bounds; README.md lists the same. */
static const struct key {
    const char *name;
    enum kind kind;
    size_t offset, size;
    unsigned long least, most;
    const char *otherwise;
} keys[] = {
#define FIELD(name) #name
#define AT(name) offsetof(struct settings, name), sizeof(((struct settings *)0)->name)
    {FIELD(tokens), TEXT, AT(tokens), 0, 0, ""},
    {FIELD(engine), TEXT, AT(engine), 0, 0, "auto"},
    {FIELD(faults), TEXT, AT(faults), 0, 0, ""},
    {FIELD(trace), TEXT, AT(trace), 0, 0, ""},
    {FIELD(batch), SWITCH, AT(batch), 0, 0, "on"},
    /* scrypt's N: 2^14 costs 16 MiB and about 40 ms; 2^15 would pass libcrypto's default memory bound. */
    {FIELD(kdf_log2n), NUMBER, AT(kdf_log2n), 4, 14, "14"},
    {FIELD(max_user_failures), NUMBER, AT(max_user_failures), 1, 1000, "10"},
    {FIELD(max_so_failures), NUMBER, AT(max_so_failures), 1, 1000, "10"},
    {FIELD(service_us), NUMBER, AT(service_us), 0, 60000000, "0"},
    {FIELD(engines), NUMBER, AT(engines), 1, 1024, "1"},
    {FIELD(round_trip_us), NUMBER, AT(round_trip_us), 0, 60000000, "0"},
#undef FIELD
#undef AT
};

static bool assign(struct settings *settings, const struct key *key, const char *value, char *message,
                   size_t message_len) {
    char *field = (char *)settings + key->offset;
    if (key->kind == TEXT) {
        if (strlen(value) >= key->size) {
            snprintf(message, message_len, "%s: longer than %zu characters", key->name, key->size - 1);
            return false;
        }
        memset(field, 0, key->size);
        memcpy(field, value, strlen(value));
        return true;
    }
    if (key->kind == SWITCH) {
        bool on = strcmp(value, "on") == 0;
        if (!on && strcmp(value, "off") != 0) {
            snprintf(message, message_len, "%s: expected on or off, got \"%.40s\"", key->name, value);
            return false;
        }
        memcpy(field, &on, sizeof on);
        return true;
    }
    char *end;
    errno = 0;
    unsigned long number = strtoul(value, &end, 10);
    if (!isdigit((unsigned char)*value) || *end || errno || number < key->least || number > key->most) {
        snprintf(message, message_len, "%s: expected a number from %lu to %lu, got \"%.40s\"", key->name,
                 key->least, key->most, value);
        return false;
    }
    memcpy(field, &number, sizeof number);
    return true;
}

void settings_default(struct settings *settings) {
    char ignored[256];
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        assign(settings, &keys[i], keys[i].otherwise, ignored, sizeof ignored);
}

bool settings_line(struct settings *settings, const char *line, char *message, size_t message_len) {
    while (isspace((unsigned char)*line))
        line++;
    if (!*line || *line == '#')
        return true;
    size_t name_len = strcspn(line, " \t=");
    const char *value = line + name_len + strspn(line + name_len, " \t");
    if (*value != '=') {
        snprintf(message, message_len, "expected \"key = value\", got \"%.60s\"", line);
        return false;
    }
    value += 1 + strspn(value + 1, " \t");
    char text[SETTING_TEXT_MAX];
    size_t value_len = strlen(value);
    while (value_len && isspace((unsigned char)value[value_len - 1]))
        value_len--;
    if (value_len >= sizeof text) {
        snprintf(message, message_len, "a value longer than %zu characters", sizeof text - 1);
        return false;
    }
    memcpy(text, value, value_len);
    text[value_len] = 0;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (strlen(keys[i].name) == name_len && memcmp(keys[i].name, line, name_len) == 0)
            return assign(settings, &keys[i], text, message, message_len);
    snprintf(message, message_len, "unknown key \"%.*s\"", (int)(name_len < 40 ? name_len : 40), line);
    return false;
}

static bool read_file(struct settings *settings, const char *path, char *message, size_t message_len) {
    FILE *file = fopen(path, "re");
    if (!file) {
        snprintf(message, message_len, "%s: %s", path, strerror(errno));
        return false;
    }
    char line[SETTING_TEXT_MAX + 64], problem[256];
    bool good = true;
    for (unsigned number = 1; good && fgets(line, sizeof line, file); number++) {
        good = settings_line(settings, line, problem, sizeof problem);
        if (!good)
            snprintf(message, message_len, "%s:%u: %s", path, number, problem);
    }
    fclose(file);
    return good;
}

bool settings_read(struct settings *settings, char *message, size_t message_len) {
    settings_default(settings);
    const char *path = getenv("FIRMWARE_SIM_CONF");
    if (path && *path && !read_file(settings, path, message, message_len))
        return false;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char name[64] = "FIRMWARE_SIM_";
        size_t len = strlen(name);
        for (const char *c = keys[i].name; *c; c++)
            name[len++] = (char)toupper((unsigned char)*c);
        const char *value = getenv(name);
        char problem[256];
        if (value && !assign(settings, &keys[i], value, problem, sizeof problem)) {
            snprintf(message, message_len, "environment: FIRMWARE_SIM_ %s", problem);
            return false;
        }
    }
    if (!*settings->tokens) {
        snprintf(message, message_len,
                 "no token directory: set FIRMWARE_SIM_TOKENS, or tokens = in the file that "
                 "FIRMWARE_SIM_CONF names");
        return false;
    }
    return true;
}
