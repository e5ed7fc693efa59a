"""A server that computes nothing: the service's HTTP stack with one constant answer.

What the load generator reaches against it is the most that it can measure, and how much of a core it takes there for
each request is its own share of every other measurement.

    python -m domainclip.service.load_test.null_server FD     # the number of a listening socket
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from domainclip.errors import CLIPFinetuningError, MissingExtraError

ANSWER = b'{"model":"null","scores":[0.25],"errors":[]}'
_STARTS_WITHIN = 30.0


def null_application() -> Any:
    """Make the application: reads each request whole, as the service does.

    Returns:
        For ASGI.

    Raises:
        MissingExtraError: FastAPI is not installed.
    """
    try:
        from fastapi import FastAPI, Request, Response
    except ImportError:
        raise MissingExtraError("fastapi", "serve", "The null server") from None
    application = FastAPI(openapi_url=None)

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(ANSWER, media_type="application/json")

    application.add_route("/{path:path}", answer, methods=["GET", "POST"])
    return application


@contextmanager
def null_server() -> Iterator[str]:
    """Run one in a process of its own.

    Yields:
        Its address.

    Raises:
        CLIPFinetuningError: It does not start.
        MissingExtraError: The server's packages are not installed.
    """
    null_application()  # says here what is missing
    with socket.create_server(("127.0.0.1", 0)) as listening:
        number, port = listening.fileno(), listening.getsockname()[1]
        command = [sys.executable, "-m", "domainclip.service.load_test.null_server", str(number)]
        process = subprocess.Popen(command, pass_fds=(number,))
    try:
        _wait_for(process, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    """Until it answers."""
    end = time.monotonic() + _STARTS_WITHIN
    while process.poll() is None and time.monotonic() < end:
        try:
            with socket.create_connection(("127.0.0.1", port), 0.5) as connection:
                connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
                if connection.recv(1):
                    return
        except OSError:
            time.sleep(0.05)
    raise CLIPFinetuningError("The null server has not started: its messages are above")


def _main() -> None:
    import uvicorn

    config = uvicorn.Config(null_application(), log_level="error", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])


if __name__ == "__main__":
    _main()
