#!/usr/bin/env python3
"""A server to start from: one process, one connection at a time, and as much of CONTRACT.md as fits here.

Judge it: `target/release/lab check -- python3 experiments/own-server/server.py`.
It holds levels 1 and 2 of 6. Then make it hold the next.
"""
import argparse, json, os, signal, socket, sys, time

parser = argparse.ArgumentParser()
parser.add_argument("--listen", default="127.0.0.1:8080")
options = parser.parse_args()
host, port = options.listen.rsplit(":", 1)
family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
listener = socket.socket(family)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
try:
    listener.bind((host.strip("[]"), int(port)))
    listener.listen(4096)
except OSError as error:
    sys.exit(f"listen on {options.listen}: {error.strerror}")
address = f"{host}:{listener.getsockname()[1]}"
count, began = {"accepted": 0, "requests": 0}, time.monotonic()


def stop(signal, frame):
    worker = {"id": 0, "pid": os.getpid(), "active": 0, **count}
    print(json.dumps({"model": "own-python", "listen": address, "uptime_s": time.monotonic() - began, "workers": [worker]}))
    sys.stdout.flush()
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", address, flush=True)
while True:
    connection, _ = listener.accept()
    count["accepted"] += 1
    with connection:
        if connection.recv(16384):
            body = f"handled by worker 0, pid {os.getpid()}\n".encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nX-Worker: 0\r\nConnection: close\r\n\r\n"
            count["requests"] += 1
            connection.sendall(head.encode() + body)
