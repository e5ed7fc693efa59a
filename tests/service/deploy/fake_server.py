"""A server that keeps the contract of ``domainclip serve`` with its supervisor, and can be told to fail.

``python fake_server.py MODEL [--start S] [--refuse] [--never] [--crash S] [--sick S] [--slow S]``
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
from contextlib import suppress

from domainclip.service.activation import follow_parent, inherited_socket, notify

IDLE_S = 2.0  # a draining server closes a connection that has been silent for so long


class FakeServer:
    def __init__(self, model: str, slow: float) -> None:
        self.model, self.slow = model, slow
        self.sick, self.draining = False, asyncio.Event()
        self.connections: set[asyncio.Task[None]] = set()

    async def serve(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self.connected, sock=listening)
        notify("READY=1")
        await self.draining.wait()
        notify("STOPPING=1")
        server.close()
        await asyncio.sleep(0.05)  # what was accepted at this moment becomes a connection
        if self.connections:
            await asyncio.wait(self.connections)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.connections.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                while await self.exchange(reader, writer):
                    pass
        finally:
            self.connections.discard(task)
            writer.close()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        drain = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait((first, drain), return_when=asyncio.FIRST_COMPLETED)
            head = await asyncio.wait_for(first, None if first.done() else IDLE_S)
        finally:
            drain.cancel()
        path = head.split()[1].decode()
        if path != "/health/ready":
            await asyncio.sleep(self.slow)
        status = "unhealthy" if self.sick else "ready"
        facts = {"status": status, "model": self.model, "fingerprint": f"fp-{self.model}", "pid": os.getpid()}
        body = json.dumps(facts)
        code = "503 Service Unavailable" if path == "/health/ready" and self.sick else "200 OK"
        close = self.draining.is_set() or b"connection: close" in head.lower()
        writer.write(
            f"HTTP/1.1 {code}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n{body}".encode()
        )
        await writer.drain()
        return not close


async def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--start", type=float, default=0.0)
    parser.add_argument("--refuse", action="store_true")
    parser.add_argument("--never", action="store_true")
    parser.add_argument("--crash", type=float)
    parser.add_argument("--sick", type=float)
    parser.add_argument("--slow", type=float, default=0.0)
    given = parser.parse_args()
    listening = inherited_socket()
    assert listening is not None
    server = FakeServer(given.model, given.slow)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, server.draining.set)
    follow_parent()
    notify("STATUS=loading the model")
    with suppress(TimeoutError):
        await asyncio.wait_for(server.draining.wait(), given.start)
        return 0
    if given.refuse:
        print(f"Error: {given.model} fails its golden check: cosine 0.5", file=sys.stderr)
        return 2
    if given.never:
        await server.draining.wait()
        return 0
    if given.crash is not None:
        loop.call_later(given.crash, os._exit, 3)
    if given.sick is not None:
        loop.call_later(given.sick, setattr, server, "sick", True)
    await server.serve(listening)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
