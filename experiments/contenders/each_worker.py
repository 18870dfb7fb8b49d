"""Starts worker processes of uvicorn, each with a listener of its own (SO_REUSEPORT) as `--fd`, which uvicorn documents
for supervisors: each_worker.py WORKERS HOST PORT COMMAND…. It waits for them, and they end with it."""

import contextlib
import os
import signal
import socket
import sys

ENDING = (signal.SIGTERM, signal.SIGINT)

workers, host, port, *command = sys.argv[1:]
pids = []
# A signal that comes meanwhile waits until all of them are there to get it.
signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
for _ in range(int(workers)):
    pid = os.fork()
    if pid == 0:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, int(port)))
        os.set_inheritable(listener.fileno(), True)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
        os.execvp(command[0], [*command, "--fd", str(listener.fileno())])
    pids.append(pid)


def end(*_):
    for pid in pids:
        # It may have ended by itself.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


for number in ENDING:
    signal.signal(number, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
for pid in pids:
    os.waitpid(pid, 0)
