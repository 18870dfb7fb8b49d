"""The answer as an application of gunicorn (WSGI) and of uvicorn (ASGI). It is made once, by the worker that gives it."""

import functools
import os


@functools.cache
def answer(pid):
    number = b"%d" % (pid % 1000)
    body = (b"handled by worker %s, pid %d\n" % (number, pid)).ljust(63, b".") + b"\n"
    return number, body, b"%d" % len(body)


def wsgi(environ, start_response):
    number, body, length = answer(os.getpid())
    names = ("Content-Type", "Content-Length", "X-Worker")
    start_response("200 OK", list(zip(names, ("text/plain", length.decode(), number.decode()))))
    return [body]


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    number, body, length = answer(os.getpid())
    names = (b"content-type", b"content-length", b"x-worker")
    head = list(zip(names, (b"text/plain", length, number)))
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})
