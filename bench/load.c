/* A caller of the wire protocol in C: SIGN requests of one item, as fast as answers come or at given instants.
 *
 * The daemon's peers are called by C (raw_loop.c through p11-kit's client module), and a caller shares the cores with
 * what it measures. This one costs as little as theirs does, and has their shape: a caller is a thread with a
 * connection of its own, that blocks.
 *
 * - Closed loop: every caller has --in-flight requests under way and sends one for each answer; answers that came
 *   together are followed by requests that leave together.
 * - Open loop (--rate): one caller sends at instants drawn beforehand (Poisson), whatever has been answered by then. A
 *   latency counts from that instant, so that a stall is felt by every request that falls into it, and so is the
 *   caller's own lateness.
 * - --echo instead of --key: the peer sends back what it gets, which is a round trip without any daemon. With
 *   --echo-here it is a thread of a child process of ours.
 *
 * Prints one JSON object. A request that fails ends the run: no rate is reported for it.
 */
#define _GNU_SOURCE
#include <endian.h>
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* appliance/PROTOCOL.md. */
enum { HEADER_LEN = 16, DIGEST_LEN = 32, SIGN_HEAD_LEN = 36, SIGNED_LEN = HEADER_LEN + 32 + 1 + 64 };
enum { HELLO = 1, SIGN = 2, WELCOME = 65, SIGNED = 66, ERROR = 70 };
enum { DEADLINE_MS = 60000, PRIORITY_INTERACTIVE = 1, MAX_NAME_LEN = 64 };
enum { FULL_NS = 100 * 1000 }; /* a socket that is full is tried again, if no answer comes before */
enum { MAX_IN_FLIGHT = 1024, MAX_FRAME_LEN = 256, MAX_SAMPLES = 1 << 22 };

static const char *path, *account = "", *key;
static int callers = 1, in_flight = 1, is_echo, echoes_here;
static double seconds = 1, warm_s = 0.1, rate;
static long seed = 1;

typedef struct {
    int fd;
    int window;
    uint8_t request[MAX_FRAME_LEN];
    size_t request_len, answer_len;
    uint8_t input[1 << 16];
    size_t held;
    int64_t *samples;
    size_t count;
    int64_t from, until;
    pthread_t thread;
} Caller;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(1);
}

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static uint8_t *put(uint8_t *at, uint64_t number, int len)
{
    for (int shift = 8 * (len - 1); shift >= 0; shift -= 8)
        *at++ = (uint8_t)(number >> shift);
    return at;
}

static uint64_t get(const uint8_t *at, int len)
{
    uint64_t number = 0;
    while (len--)
        number = number << 8 | *at++;
    return number;
}

static uint8_t *put_header(uint8_t *at, size_t payload_len, int type, uint64_t request_id)
{
    return put(put(put(put(at, payload_len, 4), (uint64_t)type, 1), 0, 3), request_id, 8);
}

static void send_all(int fd, const void *block, size_t len)
{
    const char *at = block;
    while (len) {
        ssize_t sent = send(fd, at, len, MSG_NOSIGNAL);
        if (sent < 0 && errno != EINTR)
            die("send: %s", strerror(errno));
        if (sent > 0)
            at += sent, len -= (size_t)sent;
    }
}

/* A request, or nothing of it where the peer has to be read from first: both could wait for each other for ever. */
static int send_one(int fd, const uint8_t *block, size_t len)
{
    ssize_t sent = send(fd, block, len, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (sent < 0)
        die("send: %s", strerror(errno));
    send_all(fd, block + sent, len - (size_t)sent);
    return 1;
}

/* Waits for at least one byte. */
static void receive(Caller *self)
{
    ssize_t got = recv(self->fd, self->input + self->held, sizeof self->input - self->held, 0);
    if (got < 0 && errno == EINTR)
        return;
    if (got <= 0)
        die("recv: %s", got ? strerror(errno) : "the peer has closed the connection");
    self->held += (size_t)got;
}

static void say_hello(Caller *self)
{
    uint8_t frame[MAX_FRAME_LEN], *at = frame + HEADER_LEN;
    size_t name_len = strlen(account);
    memcpy(at, "CLDSEAL", 8);
    at = put(put(put(put(at + 8, 0x0101, 2), 0, 2), name_len, 1), 0, 1);
    memcpy(at, account, name_len);
    at += name_len;
    put_header(frame, (size_t)(at - frame) - HEADER_LEN, HELLO, 1);
    send_all(self->fd, frame, (size_t)(at - frame));
    do
        receive(self);
    while (self->held < HEADER_LEN || self->held < HEADER_LEN + get(self->input, 4));
    if (self->input[4] != WELCOME)
        die("expected WELCOME, got a frame of type %d", self->input[4]);
    self->window = (int)get(self->input + HEADER_LEN + 4, 4);
    self->held = 0;
}

static void prepare(Caller *self)
{
    size_t name_len = strlen(key);
    uint8_t *at = self->request + HEADER_LEN + 16;
    at = put(put(put(at, 0, 8), DEADLINE_MS, 4), 1, 4);
    at = put(put(put(put(at, 0, 1), PRIORITY_INTERACTIVE, 1), name_len, 1), 0, 1);
    memcpy(at, key, name_len);
    at += name_len;
    for (int index = 0; index < DIGEST_LEN; index++)
        *at++ = (uint8_t)rand();
    self->request_len = (size_t)(at - self->request);
    put_header(self->request, self->request_len - HEADER_LEN, SIGN, 0);
    self->answer_len = is_echo ? self->request_len : SIGNED_LEN;
}

static void connect_to(Caller *self)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        die("the socket's path is too long");
    strcpy(address.sun_path, path);
    self->fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (self->fd < 0 || connect(self->fd, (struct sockaddr *)&address, sizeof address))
        die("%s: %s", path, strerror(errno));
}

static void *echo(void *argument)
{
    int fd = *(int *)argument;
    char block[1 << 16];
    ssize_t got;
    while ((got = recv(fd, block, sizeof block, 0)) > 0)
        send_all(fd, block, (size_t)got);
    return NULL;
}

/* A process that echoes on the other ends, a thread for each. */
static void fork_echo(Caller *all)
{
    int theirs[MAX_IN_FLIGHT];
    for (int index = 0; index < callers; index++) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
            die("socketpair: %s", strerror(errno));
        all[index].fd = pair[0];
        theirs[index] = pair[1];
    }
    pid_t child = fork();
    if (child < 0)
        die("fork: %s", strerror(errno));
    if (!child) {
        prctl(PR_SET_PDEATHSIG, 9);
        pthread_t threads[MAX_IN_FLIGHT];
        for (int index = 0; index < callers; index++) {
            close(all[index].fd);
            pthread_create(threads + index, NULL, echo, theirs + index);
        }
        for (int index = 0; index < callers; index++)
            pthread_join(threads[index], NULL);
        _exit(0);
    }
    for (int index = 0; index < callers; index++)
        close(theirs[index]);
}

/* The next whole answer's request id; 0 where more must be received. */
static uint64_t next_answer(Caller *self, size_t *at)
{
    const uint8_t *frame = self->input + *at;
    if (self->held - *at < HEADER_LEN)
        return 0;
    if (!is_echo && (frame[4] != SIGNED || get(frame, 4) != SIGNED_LEN - HEADER_LEN))
        die("expected SIGNED of one item, got a frame of type %d", frame[4]);
    if (self->held - *at < self->answer_len)
        return 0;
    if (!is_echo && get(frame + HEADER_LEN + 28, 4))
        die("a signature failed");
    *at += self->answer_len;
    return get(frame + 8, 8);
}

static void keep_rest(Caller *self, size_t at)
{
    self->held -= at;
    memmove(self->input, self->input + at, self->held);
}

static uint8_t *put_request(const Caller *self, uint8_t *at, uint64_t request_id)
{
    memcpy(at, self->request, self->request_len);
    put(at + 8, request_id, 8);
    put(at + HEADER_LEN + 16, request_id, 8); /* its index in the job */
    return at + self->request_len;
}

static void *closed_loop(void *argument)
{
    Caller *self = argument;
    int64_t sent_at[MAX_IN_FLIGHT + 1];
    uint8_t *output = malloc((size_t)in_flight * self->request_len), *end = output;
    uint64_t answered[MAX_IN_FLIGHT];
    int count = in_flight, out = 0;
    for (int index = 0; index < count; index++)
        answered[index] = (uint64_t)index + 1;
    for (;;) {
        int64_t now = now_ns();
        if (now >= self->until)
            count = 0;
        end = output;
        for (int index = 0; index < count; index++) {
            end = put_request(self, end, answered[index]);
            sent_at[answered[index]] = now;
        }
        out += count;
        if (!out)
            break;
        if (count)
            send_all(self->fd, output, (size_t)(end - output));
        receive(self);
        now = now_ns();
        size_t at = 0;
        count = 0;
        for (uint64_t id; (id = next_answer(self, &at)); answered[count++] = id)
            if (sent_at[id] >= self->from && now < self->until && self->count < MAX_SAMPLES)
                self->samples[self->count++] = now - sent_at[id];
        out -= count;
        keep_rest(self, at);
    }
    free(output);
    return NULL;
}

/* A timer that stays set while answers come: on a virtual machine each change of what wakes a processor next leaves the
 * machine, and one for each sleep cost the caller 5 us a request. */
static int new_timer(void)
{
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    if (timer < 0)
        die("timerfd_create: %s", strerror(errno));
    return timer;
}

static void set_timer(int timer, int64_t at_ns)
{
    struct itimerspec at = {.it_value = {at_ns / 1000000000, at_ns % 1000000000}};
    if (timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL))
        die("timerfd_settime: %s", strerror(errno));
}

/* Instants are counted from `from`, those before it are for warming up. */
static void *open_loop(void *argument)
{
    Caller *self = argument;
    size_t wanted = 0, sent = 0, answered = 0;
    int64_t *instants = self->samples;
    srand48(seed);
    for (double at = -warm_s; wanted < MAX_SAMPLES; wanted++) {
        at -= log(1 - drand48()) / rate;
        if (at >= seconds)
            break;
        instants[wanted] = self->from + (int64_t)(at * 1e9);
    }
    uint8_t output[MAX_FRAME_LEN];
    struct pollfd waited[] = {{.fd = self->fd, .events = POLLIN}, {.fd = new_timer(), .events = POLLIN}};
    size_t timed = wanted; /* the request whose instant the timer is set to */
    while (answered < wanted) {
        int may_send = sent < wanted && sent - answered < (size_t)self->window;
        if (may_send && instants[sent] <= now_ns()) {
            uint8_t *end = put_request(self, output, sent + 1);
            if (send_one(self->fd, output, (size_t)(end - output))) {
                sent++;
                continue;
            }
            set_timer(waited[1].fd, now_ns() + FULL_NS);
            timed = sent;
        }
        if (may_send && timed != sent) {
            set_timer(waited[1].fd, instants[sent]);
            timed = sent;
        }
        if (poll(waited, may_send ? 2 : 1, -1) <= 0 || !waited[0].revents)
            continue;
        receive(self);
        int64_t now = now_ns();
        size_t at = 0;
        for (uint64_t id; (id = next_answer(self, &at)); answered++)
            self->samples[id - 1] = instants[id - 1] < self->from ? -1 : now - instants[id - 1];
        keep_rest(self, at);
    }
    for (size_t index = 0; index < wanted; index++)
        if (self->samples[index] >= 0)
            self->samples[self->count++] = self->samples[index];
    return NULL;
}

static int by_size(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static double cpu_s(void)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}

static void report(Caller *all, double own_s)
{
    size_t total = 0;
    for (int index = 0; index < callers; index++)
        total += all[index].count;
    if (!total)
        die("no request was answered");
    int64_t *samples = malloc(total * sizeof *samples), *end = samples;
    for (int index = 0; index < callers; index++) {
        memcpy(end, all[index].samples, all[index].count * sizeof *samples);
        end += all[index].count;
    }
    qsort(samples, total, sizeof *samples, by_size);
    printf("{\"rate\": %.1f, \"signatures\": %zu, \"seconds\": %.3f, \"p50_us\": %.1f, \"p99_us\": %.1f, "
           "\"max_us\": %.1f, \"client_us\": %.2f}\n",
           (double)total / seconds, total, seconds, (double)samples[total / 2] / 1e3,
           (double)samples[total * 99 / 100] / 1e3, (double)samples[total - 1] / 1e3, own_s / (double)total * 1e6);
    free(samples);
}

static void take_options(int argc, char **argv)
{
    static const struct option options[] = {
        {"socket", required_argument, 0, 's'},    {"account", required_argument, 0, 'a'},
        {"key", required_argument, 0, 'k'},       {"callers", required_argument, 0, 'c'},
        {"in-flight", required_argument, 0, 'i'}, {"seconds", required_argument, 0, 't'},
        {"warm", required_argument, 0, 'w'},      {"rate", required_argument, 0, 'r'},
        {"seed", required_argument, 0, 'S'},      {"echo", no_argument, 0, 'e'},
        {"echo-here", no_argument, 0, 'h'},       {0, 0, 0, 0},
    };
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;)
        switch (option) {
        case 's': path = optarg; break;
        case 'a': account = optarg; break;
        case 'k': key = optarg; break;
        case 'c': callers = atoi(optarg); break;
        case 'i': in_flight = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'w': warm_s = atof(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'S': seed = atol(optarg); break;
        case 'e': is_echo = 1; break;
        case 'h': is_echo = echoes_here = 1; break;
        default: exit(2);
        }
    if (is_echo && !key)
        key = "bench";
    if (optind < argc || !key || (!path && !echoes_here) || callers < 1 || callers > MAX_IN_FLIGHT || in_flight < 1 ||
        in_flight > MAX_IN_FLIGHT || seconds <= 0 || rate < 0 || (rate > 0 && callers > 1) ||
        strlen(key) > MAX_NAME_LEN || strlen(account) > MAX_NAME_LEN)
        die("usage: load --socket=PATH (--account=A --key=K | --echo) [--echo-here] [--callers=N] [--in-flight=N]\n"
            "            [--seconds=S] [--warm=S] [--rate=N --seed=N]");
}

int main(int argc, char **argv)
{
    take_options(argc, argv);
    Caller *all = calloc((size_t)callers, sizeof *all);
    if (!all)
        die("no memory");
    if (echoes_here)
        fork_echo(all);
    for (int index = 0; index < callers; index++) {
        Caller *self = all + index;
        self->window = MAX_IN_FLIGHT;
        self->samples = malloc(MAX_SAMPLES * sizeof *self->samples); /* untouched pages cost nothing */
        if (!self->samples)
            die("no memory");
        if (!echoes_here)
            connect_to(self);
        if (!is_echo)
            say_hello(self);
        prepare(self);
    }
    double own_s = cpu_s();
    int64_t from = now_ns() + (int64_t)(warm_s * 1e9);
    for (int index = 0; index < callers; index++) {
        all[index].from = from;
        all[index].until = from + (int64_t)(seconds * 1e9);
        if (pthread_create(&all[index].thread, NULL, rate > 0 ? open_loop : closed_loop, all + index))
            die("pthread_create failed");
    }
    for (int index = 0; index < callers; index++)
        pthread_join(all[index].thread, NULL);
    report(all, cpu_s() - own_s);
    return 0;
}
