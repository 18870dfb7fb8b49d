/* A server to start from: one process, one connection at a time, and as much of CONTRACT.md as fits here.
 *
 * Build and judge it: cc -o /tmp/own-server experiments/own-server/server.c
 *                     target/release/lab check -- /tmp/own-server
 * Then make it keep the next point. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int accepted, requests;
static char address[64];

static void stop(int number) { /* write(2) and _exit(2) only: the rest is not safe here (signal-safety(7)) */
    char report[256];
    int length = snprintf(report, sizeof report, "{\"model\":\"own-c\",\"listen\":\"%s\",\"uptime_s\":0,\"workers\":[{\"id\":0,\"pid\":%d,\"accepted\":%d,\"requests\":%d,\"active\":0}]}\n", address, getpid(), accepted, requests);
    _exit(number && write(1, report, length) == length ? 0 : 1);
}

int main(int argc, char **argv) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (argc > 1) { /* --listen ADDR:PORT and nothing else */
        char *colon = argc == 3 && !strcmp(argv[1], "--listen") ? strrchr(argv[2], ':') : NULL;
        if (!colon) { fprintf(stderr, "usage: server [--listen ADDR:PORT]\n"); return 2; }
        *colon = 0, at.sin_port = htons(atoi(colon + 1)), inet_pton(AF_INET, argv[2], &at.sin_addr);
    }
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    socklen_t size = sizeof at;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 4096)) { perror("bind"); return 1; }
    getsockname(listener, (struct sockaddr *)&at, &size);
    snprintf(address, sizeof address, "%s:%d", inet_ntoa(at.sin_addr), ntohs(at.sin_port));
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
