/* Open-loop load for the router's benchmark.
 *
 * usage: load PORTS RATE SECONDS SEED OUT
 * Sends streaming requests to PORTS in turn, each over a connection of its own, at Poisson times of RATE per second.
 * Writes OUT.ttft, OUT.gap, OUT.delay: unsigned 32-bit microseconds from request to first event, between events, and
 * from an event's sending (told in it) to its arrival. Prints: sent completed events late_us (its own worst lag).
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define GRACE_US 20000000

struct call {
    uint64_t sent_us, last_us;
    int done;
    size_t have;
    char tail[32]; /* an event's beginning, where one read ended within it */
};

static struct call *calls[MAX_FD];
static int ports[64], port_count, epoll;
static long sent, completed, open_calls, events_seen;
static FILE *ttft, *gap, *delay;
static const char request[] =
    "POST /generate HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: 512\r\n\r\n";
static char body[513];

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void note(FILE *file, uint64_t us) {
    uint32_t value = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    fwrite(&value, sizeof value, 1, file);
}

static void launch(void) {
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(ports[sent % port_count]),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct call *call = calloc(1, sizeof *call);
    call->sent_us = now_us();
    sent++;
    if (fd < 0 || fd >= MAX_FD || connect(fd, (struct sockaddr *)&at, sizeof at)) { free(call); return; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char out[1024];
    int n = sprintf(out, "%s%s", request, body);
    if (send(fd, out, n, MSG_NOSIGNAL) != n) { free(call); close(fd); return; }
    calls[fd] = call;
    open_calls++;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void finish(int fd) {
    completed += calls[fd]->done;
    free(calls[fd]);
    calls[fd] = NULL;
    open_calls--;
    close(fd);
}

static void saw_event(struct call *call, uint64_t at_us, const char *digits) {
    note(call->last_us ? gap : ttft, at_us - (call->last_us ? call->last_us : call->sent_us));
    uint64_t told_us = strtoull(digits, NULL, 10);
    note(delay, at_us > told_us ? at_us - told_us : 0);
    call->last_us = at_us;
    events_seen++;
}

static void receive(int fd) {
    static char in[262144 + 64];
    struct call *call = calls[fd];
    memcpy(in, call->tail, call->have);
    ssize_t n = recv(fd, in + call->have, 262144, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) { finish(fd); return; }
    uint64_t at_us = now_us();
    char *from = in, *end = in + call->have + n, *mark;
    *end = 0;
    while ((mark = memmem(from, end - from, "{\"t\":", 5)) && end - mark >= 21) {
        saw_event(call, at_us, mark + 5);
        from = mark + 21;
    }
    if (memmem(from, end - from, "[DONE]", 6)) {
        call->done = 1;
        finish(fd);
        return;
    }
    size_t rest = end - from > 24 ? 24 : end - from;
    memcpy(call->tail, end - rest, rest);
    call->have = rest;
}

static FILE *out_file(const char *prefix, const char *suffix) {
    char name[4096];
    snprintf(name, sizeof name, "%s.%s", prefix, suffix);
    FILE *file = fopen(name, "wb");
    if (!file) { perror(name); exit(1); }
    return file;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    for (char *port = strtok(argv[1], ","); port && port_count < 64; port = strtok(NULL, ",")) ports[port_count++] = atoi(port);
    double rate = atof(argv[2]);
    uint64_t length_us = (uint64_t)(atof(argv[3]) * 1e6), worst_us = 0;
    srand48(atol(argv[4]));
    ttft = out_file(argv[5], "ttft"), gap = out_file(argv[5], "gap"), delay = out_file(argv[5], "delay");
    int used = sprintf(body, "{\"stream\":true,\"text\":\"");
    memset(body + used, 'x', 512 - used - 2);
    memcpy(body + 510, "\"}", 3);
    epoll = epoll_create1(0);
    uint64_t start = now_us(), next = start;
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_us();
        while (next <= now && next < start + length_us) {
            if (now - next > worst_us) worst_us = now - next;
            launch();
            next += (uint64_t)(-log(1 - drand48()) / rate * 1e6);
        }
        int sending = next < start + length_us;
        if ((!sending && !open_calls) || now > start + length_us + GRACE_US) break;
        int wait_ms = sending ? (int)((next > now ? next - now : 0) / 1000) : 100;
        int n = epoll_wait(epoll, events, 256, wait_ms);
        for (int i = 0; i < n; i++)
            if (calls[events[i].data.fd]) receive(events[i].data.fd);
    }
    fclose(ttft), fclose(gap), fclose(delay);
    printf("%ld %ld %ld %llu\n", sent, completed, events_seen, (unsigned long long)worst_us);
    return 0;
}
