#include "fault.h"

#include "timing.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PLAN_LEN_MAX = 65536 };

static const char *const call_names[CALL_KINDS] = {
#define NAME(name, arguments) [CALL_##name] = #name,
    CK_FUNCTIONS_2_40(NAME) CK_FUNCTIONS_3_0(NAME)
#undef NAME
        [CALL_C_SignBatch] = "C_SignBatch",
    [CALL_signature] = "signature",
    [CALL_ANY] = "*",
};

const char *fault_call_name(unsigned call) {
    return call < CALL_KINDS ? call_names[call] : "?";
}

static const struct {
    const char *name;
    CK_RV rv;
} return_values[] = {
#define VALUE(name, number) {#name, number},
    CK_RETURN_VALUES(VALUE)
#undef VALUE
};

static const struct {
    const char *name;
    enum fault_action action;
    enum { TAKES_NOTHING, TAKES_RV, TAKES_MS, TAKES_REMOVAL } takes;
    bool for_signature; /* may stand behind `signature` */
} actions[] = {
    {"fail", FAULT_FAIL, TAKES_RV, true},
    {"lose", FAULT_LOSE, TAKES_RV, true},
    {"hang", FAULT_HANG, TAKES_NOTHING, true},
    {"hang-after", FAULT_HANG_AFTER, TAKES_NOTHING, true},
    {"crash", FAULT_CRASH, TAKES_NOTHING, true},
    {"crash-after", FAULT_CRASH_AFTER, TAKES_NOTHING, true},
    {"delay", FAULT_DELAY, TAKES_MS, true},
    {"corrupt", FAULT_CORRUPT, TAKES_NOTHING, true},
    {"remove", FAULT_REMOVE_CALLS, TAKES_REMOVAL, false},
    {"session-lost", FAULT_SESSION_LOST, TAKES_NOTHING, false},
    {"pin-locked", FAULT_PIN_LOCKED, TAKES_NOTHING, false},
};

static bool number_read(const char *text, size_t len, uint64_t *number) {
    *number = 0;
    for (size_t i = 0; i < len; i++) {
        if (!isdigit((unsigned char)text[i]) || *number > 1000000000000U)
            return false;
        *number = *number * 10 + (uint64_t)(text[i] - '0');
    }
    return len > 0;
}

/* "7", "7..", "7..9"; "every 10" is two words and handled by the caller. */
static bool occurrence_read(const char *word, struct fault_rule *rule) {
    const char *dots = strstr(word, "..");
    size_t first_len = dots ? (size_t)(dots - word) : strlen(word);
    if (!number_read(word, first_len, &rule->first) || rule->first == 0)
        return false;
    rule->last = rule->first;
    if (dots && !dots[2])
        rule->last = UINT64_MAX;
    else if (dots && (!number_read(dots + 2, strlen(dots + 2), &rule->last) || rule->last < rule->first))
        return false;
    return true;
}

static const char *rule_read(char *words[], size_t count, struct fault_rule *rule) {
    static _Thread_local char problem[128];
    size_t at = 0;
    *rule = (struct fault_rule){.call = CALL_KINDS};
#define NEXT (at < count ? words[at++] : "")
#define PROBLEM(...) return snprintf(problem, sizeof problem, __VA_ARGS__), problem
    const char *word = NEXT;
    for (unsigned i = 0; i < CALL_KINDS; i++)
        if (strcmp(word, call_names[i]) == 0)
            rule->call = i;
    if (rule->call == CALL_KINDS)
        PROBLEM("no call is named \"%.40s\"", word);
    word = NEXT;
    if (strcmp(word, "every") == 0) {
        word = NEXT;
        if (!number_read(word, strlen(word), &rule->every) || rule->every == 0)
            PROBLEM("expected a number behind \"every\", got \"%.40s\"", word);
    } else if (!occurrence_read(word, rule)) {
        PROBLEM("expected an occurrence (3, 3.., 3..5, every 3), got \"%.40s\"", word);
    }
    word = NEXT;
    size_t action = 0, known = sizeof actions / sizeof *actions;
    while (action < known && strcmp(word, actions[action].name) != 0)
        action++;
    if (action == known)
        PROBLEM("no action is named \"%.40s\"", word);
    if (rule->call == CALL_signature && !actions[action].for_signature)
        PROBLEM("\"%s\" befalls a call, not a signature", actions[action].name);
    rule->fault.action = actions[action].action;
    uint64_t amount = 0;
    switch (actions[action].takes) {
    case TAKES_NOTHING:
        break;
    case TAKES_RV:
        word = NEXT;
        for (size_t i = 0; i < sizeof return_values / sizeof *return_values; i++)
            if (strcmp(word, return_values[i].name) == 0)
                rule->fault.rv = return_values[i].rv;
        if (rule->fault.rv == CKR_OK)
            PROBLEM("expected the name of an error (CKR_...), got \"%.40s\"", word);
        break;
    case TAKES_REMOVAL:
        word = NEXT;
        if (strcmp(word, "ms") == 0)
            rule->fault.action = FAULT_REMOVE_MS;
        else if (strcmp(word, "calls") != 0)
            PROBLEM("expected \"calls\" or \"ms\" behind \"remove\", got \"%.40s\"", word);
        __attribute__((fallthrough));
    case TAKES_MS:
        word = NEXT;
        if (!number_read(word, strlen(word), &amount) || amount == 0)
            PROBLEM("expected a number, got \"%.40s\"", word);
        rule->fault.amount = (unsigned long)amount;
        break;
    }
    word = NEXT;
    rule->once = strcmp(word, "once") == 0;
    if (rule->once)
        word = NEXT;
    if (*word)
        PROBLEM("nothing more was expected at \"%.40s\"", word);
    return NULL;
#undef NEXT
#undef PROBLEM
}

bool fault_parse(struct fault_plan *plan, const char *text, char *message, size_t message_len) {
    struct fault_rule *rules = calloc(FAULT_RULES_MAX, sizeof *rules);
    size_t rule_count = 0;
    bool good = rules != NULL;
    for (unsigned line = 1; good && *text; line++) {
        size_t len = strcspn(text, "\n;");
        char copy[256], *words[8], *rest = copy;
        size_t count = 0;
        snprintf(copy, sizeof copy, "%.*s", (int)(len < sizeof copy ? len : sizeof copy), text);
        copy[strcspn(copy, "#")] = 0;
        uint64_t claim = 14695981039346656037U; /* FNV-1a over the words: names the claim of a `once` rule */
        for (char *word; count < 8 && (word = strtok_r(rest, " \t\r", &rest)); words[count++] = word)
            for (const char *c = word; *c; c++)
                claim = (claim ^ (uint8_t)*c) * 1099511628211U;
        const char *problem = NULL;
        if (len >= sizeof copy)
            problem = "a line longer than 255 characters";
        else if (count && rule_count == FAULT_RULES_MAX)
            problem = "more than 256 rules";
        else if (count) {
            problem = rule_read(words, count, &rules[rule_count]);
            snprintf(rules[rule_count].claim, sizeof rules->claim, ".once-%016llx",
                     (unsigned long long)claim);
            rule_count++;
        }
        if (problem) {
            snprintf(message, message_len, "fault plan, line %u: %s", line, problem);
            good = false;
        }
        text += len + (text[len] != 0);
    }
    if (good) {
        memcpy(plan->rules, rules, rule_count * sizeof *rules);
        plan->rule_count = rule_count;
        memset(plan->seen, 0, sizeof plan->seen);
    }
    free(rules);
    return good;
}

/* Read the file if it is another one than last time; one that is missing is an empty plan. */
static bool reload(struct fault_plan *plan, char *message, size_t message_len) {
    struct stat now = {0};
    if (stat(plan->path, &now) != 0)
        now = (struct stat){0};
    if (now.st_mtim.tv_sec == plan->modified.tv_sec && now.st_mtim.tv_nsec == plan->modified.tv_nsec &&
        now.st_ino == plan->inode && (uint64_t)now.st_size == plan->size)
        return true;
    char *text = calloc(1, PLAN_LEN_MAX + 1);
    int fd = text ? open(plan->path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t len = fd >= 0 ? read(fd, text, PLAN_LEN_MAX) : 0;
    if (fd >= 0)
        close(fd);
    bool good = text && len >= 0 && fault_parse(plan, text, message, message_len);
    free(text);
    plan->modified = now.st_mtim;
    plan->inode = now.st_ino;
    plan->size = (uint64_t)now.st_size;
    return good;
}

bool fault_start(struct fault_plan *plan, const char *setting, const char *directory, char *message,
                 size_t message_len) {
    memset(plan, 0, sizeof *plan);
    plan->on = *setting != 0;
    plan->directory = directory;
    pthread_mutex_init(&plan->lock, NULL);
    if (!plan->on)
        return true;
    if (!strchr(setting, '/')) /* no word of the language holds a slash: a plan, not a path */
        return fault_parse(plan, setting, message, message_len);
    snprintf(plan->path, sizeof plan->path, "%s", setting);
    return reload(plan, message, message_len);
}

void fault_stop(struct fault_plan *plan) {
    pthread_mutex_destroy(&plan->lock);
}

static bool claimed(const struct fault_plan *plan, const struct fault_rule *rule) {
    char path[4200];
    snprintf(path, sizeof path, "%s/%s", plan->directory, rule->claim);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return false;
    close(fd);
    return true;
}

static bool out_now(struct fault_plan *plan) {
    if (plan->out_until_ns && timing_now() >= plan->out_until_ns)
        plan->out_until_ns = 0;
    bool out = plan->out_calls || plan->out_until_ns;
    if (plan->out_calls)
        plan->out_calls--;
    return out;
}

struct fault fault_next(struct fault_plan *plan, enum call_id call, bool *token_out) {
    struct fault fault = {0};
    if (!plan->on)
        return fault;
    pthread_mutex_lock(&plan->lock);
    char message[256];
    if (*plan->path && !reload(plan, message, sizeof message)) {
        /* A plan that went bad while running: keep the old one, and say so loudly. */
        fprintf(stderr, "firmware-sim: %s: the plan before it stays in force\n", message);
    }
    uint64_t nth = ++plan->seen[call], nth_of_any = call == CALL_signature ? 0 : ++plan->seen[CALL_ANY];
    for (size_t i = 0; i < plan->rule_count && fault.action == FAULT_NONE; i++) {
        const struct fault_rule *rule = &plan->rules[i];
        uint64_t n = rule->call == (unsigned)call ? nth : rule->call == CALL_ANY ? nth_of_any : 0;
        bool hit = n && (rule->every ? n % rule->every == 0 : n >= rule->first && n <= rule->last);
        if (hit && (!rule->once || claimed(plan, rule)))
            fault = rule->fault;
    }
    if (fault.action == FAULT_REMOVE_CALLS)
        plan->out_calls = fault.amount;
    if (fault.action == FAULT_REMOVE_MS)
        plan->out_until_ns = timing_now() + fault.amount * 1000000U;
    if (call != CALL_signature && token_out)
        *token_out = out_now(plan);
    pthread_mutex_unlock(&plan->lock);
    return fault;
}
