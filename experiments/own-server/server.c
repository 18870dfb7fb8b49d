/* A server to start from: one process, one connection at a time, and as much of CONTRACT.md as fits here.
 *
 * Build and judge it: cc -o /tmp/own-server experiments/own-server/server.c
 *                     target/release/lab check -- /tmp/own-server
 * It holds levels 1 and 2 of 6. Then make it hold the next. */
#include <errno.h>
#include <netdb.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int accepted, requests;
static char address[64];

static void stop(int number) { /* write(2) and _exit(2) only: the rest is not safe here (signal-safety(7)) */
    char report[256];
    int length = snprintf(report, sizeof report, "{\"model\":\"own-c\",\"listen\":\"%s\",\"uptime_s\":0,\"workers\":[{\"id\":0,\"pid\":%d,\"accepted\":%d,\"requests\":%d,\"active\":0}]}\n", address, getpid(), accepted, requests);
    _exit(number && write(1, report, length) == length ? 0 : 1);
}

int main(int argc, char **argv) {
    /* --listen ADDR:PORT and nothing else; an IPv6 address stands in brackets. */
    char *listen_on = argc == 3 && !strcmp(argv[1], "--listen") ? argv[2] : strdup("127.0.0.1:8080");
    char *colon = strrchr(listen_on, ':'), *host = listen_on + (*listen_on == '['), port[NI_MAXSERV];
    struct addrinfo *at, numeric = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    if (colon && colon > listen_on) colon[colon[-1] == ']' ? -1 : 0] = 0;
    if ((argc > 1 && listen_on != argv[2]) || !colon || getaddrinfo(host, colon + 1, &numeric, &at)) {
        fprintf(stderr, "usage: server [--listen ADDR:PORT]\n");
        return 2;
    }
    int listener = socket(at->ai_family, SOCK_STREAM, 0), one = 1;
    const char *brackets = at->ai_family == AF_INET6 ? "[%s]:%s" : "%s:%s";
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, at->ai_addr, at->ai_addrlen) || listen(listener, 4096)) {
        snprintf(address, sizeof address, brackets, host, colon + 1);
        fprintf(stderr, "listen on %s: %s\n", address, strerror(errno));
        return 1;
    }
    getsockname(listener, at->ai_addr, &at->ai_addrlen);
    getnameinfo(at->ai_addr, at->ai_addrlen, NULL, 0, port, sizeof port, NI_NUMERICSERV);
    snprintf(address, sizeof address, brackets, host, port);
    signal(SIGTERM, stop), signal(SIGINT, stop), signal(SIGPIPE, SIG_IGN);
    printf("ready %s\n", address), fflush(stdout);
    for (;;) {
        char request[16384], body[64], response[256];
        int connection = accept(listener, NULL, NULL);
        if (connection < 0) continue;
        accepted++;
        if (read(connection, request, sizeof request) > 0) {
            int length = snprintf(body, sizeof body, "handled by worker 0, pid %d\n", getpid());
            int total = snprintf(response, sizeof response, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\nX-Worker: 0\r\nConnection: close\r\n\r\n%s", length, body);
            requests += write(connection, response, total) == total;
        }
        close(connection);
    }
}
