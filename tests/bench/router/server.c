/* Cheap prefill and decode servers for the router's benchmark: one process, one epoll loop, many ports.
 *
 * usage: server PREFILL_PORTS DECODE_PORTS CHUNKS GAP_US FIRST_US CHUNK_BYTES
 * PREFILL_PORTS and DECODE_PORTS are comma-separated. A prefill port answers a POST after FIRST_US with one token; a
 * decode port streams CHUNKS events of CHUNK_BYTES, the first after FIRST_US + 5 ms, then every GAP_US. Every event
 * carries the time at which it was sent (CLOCK_MONOTONIC, microseconds). A GET is answered with a small JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 65536
#define DECODE_LATER_US 5000

struct conn {
    int decode, busy, sent;
    uint64_t due_us;
    int heap_at; /* 1-based place among the timers, 0: none */
    size_t have, skip;
    char in[16384];
};

static struct conn *conns[MAX_FD];
static int listening[MAX_FD]; /* 1 prefill, 2 decode */
static int heap[MAX_FD], heap_size;
static int chunks, chunk_bytes;
static uint64_t gap_us, first_us;

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void put(int at, int fd) { heap[at] = fd; conns[fd]->heap_at = at; }

static void up(int at) {
    int fd = heap[at];
    for (; at > 1 && conns[heap[at / 2]]->due_us > conns[fd]->due_us; at /= 2) put(at, heap[at / 2]);
    put(at, fd);
}

static void down(int at) {
    int fd = heap[at];
    for (int child; (child = 2 * at) <= heap_size; at = child) {
        if (child < heap_size && conns[heap[child + 1]]->due_us < conns[heap[child]]->due_us) child++;
        if (conns[heap[child]]->due_us >= conns[fd]->due_us) break;
        put(at, heap[child]);
    }
    put(at, fd);
}

static void schedule(int fd, uint64_t due_us) {
    struct conn *c = conns[fd];
    c->due_us = due_us;
    if (!c->heap_at) { put(++heap_size, fd); up(heap_size); }
    else { int at = c->heap_at; up(at); down(c->heap_at); }
}

static void unschedule(int fd) {
    int at = conns[fd]->heap_at;
    if (!at) return;
    conns[fd]->heap_at = 0;
    int last = heap[heap_size--];
    if (last != fd) { put(at, last); up(at); down(conns[last]->heap_at); }
}

static void drop(int fd) { unschedule(fd); free(conns[fd]); conns[fd] = NULL; close(fd); }

static void say(int fd, const char *data, size_t size) {
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size) drop(fd);
}

static void answer(int fd, const char *body) {
    char out[1024];
    int n = snprintf(out, sizeof out,
                     "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                     strlen(body), body);
    say(fd, out, n);
}

static void tick(int fd) {
    static char out[8192];
    struct conn *c = conns[fd];
    if (!c->decode) {
        c->busy = 0;
        unschedule(fd);
        answer(fd, "{\"text\":\"a\",\"meta_info\":{\"finish_reason\":{\"type\":\"length\",\"length\":1}}}");
        return;
    }
    int n = 0;
    if (!c->sent)
        n = sprintf(out, "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                         "transfer-encoding: chunked\r\n\r\n");
    if (c->sent == chunks) {
        n += sprintf(out + n, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
        c->busy = 0;
        unschedule(fd);
        say(fd, out, n);
        return;
    }
    char event[4096];
    int m = sprintf(event, "data: {\"t\":%016llu,\"text\":\"", (unsigned long long)now_us());
    while (m < chunk_bytes - 4) event[m++] = 'x';
    m += sprintf(event + m, "\"}\n\n");
    n += sprintf(out + n, "%x\r\n", m);
    memcpy(out + n, event, m);
    memcpy(out + n + m, "\r\n", 2);
    c->sent++;
    schedule(fd, c->due_us + gap_us);
    say(fd, out, n + m + 2);
}

static void begin(int fd, int is_post) {
    struct conn *c = conns[fd];
    if (!is_post) { answer(fd, "{\"status\":\"ok\",\"model_path\":\"bench\",\"served_model_name\":\"bench\","
                               "\"is_generation\":true,\"object\":\"list\",\"data\":[],\"loads\":[]}"); return; }
    c->busy = 1;
    c->sent = 0;
    schedule(fd, now_us() + first_us + (c->decode ? DECODE_LATER_US : 0));
}

static void receive(int fd) {
    struct conn *c = conns[fd];
    ssize_t n = recv(fd, c->in + c->have, sizeof c->in - 1 - c->have, 0);
    if (n == 0 || (n < 0 && errno != EAGAIN)) { drop(fd); return; }
    if (n < 0) return;
    c->have += n;
    while (conns[fd] == c && c->have) {
        if (c->skip) { /* a body under way */
            size_t gone = c->skip < c->have ? c->skip : c->have;
            memmove(c->in, c->in + gone, c->have -= gone);
            c->skip -= gone;
            if (!c->skip) begin(fd, 1);
            continue;
        }
        c->in[c->have] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) { if (c->have > 16000) drop(fd); return; }
        size_t head = end + 4 - c->in;
        *end = 0;
        int is_post = !strncmp(c->in, "POST", 4);
        char *length = strcasestr(c->in, "\r\ncontent-length:");
        c->skip = length ? strtoul(length + 17, NULL, 10) : 0;
        if (is_post && strcasestr(c->in, "\r\nexpect: 100")) say(fd, "HTTP/1.1 100 Continue\r\n\r\n", 25);
        memmove(c->in, c->in + head, c->have -= head);
        if (!c->skip) begin(fd, is_post && length);
    }
}

static void serve(int epoll, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
    if (fd < 0) return;
    if (fd >= MAX_FD) { close(fd); return; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    conns[fd] = calloc(1, sizeof(struct conn));
    conns[fd]->decode = listening[listener] == 2;
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void listen_at(int epoll, char *ports, int kind) {
    for (char *port = strtok(ports, ","); port; port = strtok(NULL, ",")) {
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port)),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 1024)) { perror(port); exit(1); }
        listening[fd] = kind;
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
}

int main(int argc, char **argv) {
    if (argc != 7) return 2;
    signal(SIGPIPE, SIG_IGN);
    int epoll = epoll_create1(0);
    listen_at(epoll, argv[1], 1);
    listen_at(epoll, argv[2], 2);
    chunks = atoi(argv[3]);
    gap_us = atoll(argv[4]);
    first_us = atoll(argv[5]);
    chunk_bytes = atoi(argv[6]);
    if (chunk_bytes > 4000) return 2;
    puts("ready");
    fflush(stdout);
    struct epoll_event events[256];
    for (;;) {
        uint64_t now = now_us();
        int wait_ms = -1;
        if (heap_size) {
            uint64_t due = conns[heap[1]]->due_us;
            wait_ms = due <= now ? 0 : (int)((due - now + 999) / 1000);
        }
        int n = epoll_wait(epoll, events, 256, wait_ms);
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (listening[fd]) serve(epoll, fd);
            else if (conns[fd]) receive(fd);
        }
        for (now = now_us(); heap_size && conns[heap[1]]->due_us <= now;) tick(heap[1]);
    }
}
