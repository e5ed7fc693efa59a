"""One process that serves a version: started with the socket, heard of by systemd's protocol, drained at the end."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Self

from domainclip.service.activation import PARENT_VARIABLE, handing_over
from domainclip.service.deploy.state import Version

_LAST_LINES = 15
_LONGEST_LINE = 8192  # bytes
_serials = count(1)


class NeverReadyError(Exception):
    """A server has ended, or its time was over, before it was ready; the text says which, and what it has printed."""


class ServerProcess:
    """A server's process. It leads a session of its own, so that what it starts ends with it, and no Ctrl-C reaches it.

    Attributes:
        version: What it serves.
        last_lines: What it has printed last.
        status: What it says that it is doing.
        ended: Ends with the process, and all that it has started; its result says how, such as ``exit code 2``.
    """

    def __init__(self, version: Version, process: asyncio.subprocess.Process, log: Callable[[str], object]) -> None:
        self.version, self._process, self._log = version, process, log
        self.began = time.monotonic()
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.ended = asyncio.create_task(self._until_ended())
        self.status = ""
        self._ready = asyncio.Event()

    @classmethod
    async def start(
        cls, version: Version, listening: socket.socket, folder: Path, log: Callable[[str], object]
    ) -> Self:
        """Start a server.

        Args:
            version: What it serves.
            listening: Handed over to it.
            folder: Where the socket for its notifications is made.
            log: Takes each line that it prints.

        Returns:
            The process, which is not ready yet.

        Raises:
            OSError: No process can be started, or its folder is not there.
        """
        address = folder / f"notify-{next(_serials) % 1_000_000}"
        address.unlink(missing_ok=True)
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        receiver.setblocking(False)
        receiver.bind(os.fspath(address))
        address.chmod(0o600)
        read_end, lifeline = os.pipe()
        # Away from where the socket is put in the new process.
        inherited = fcntl.fcntl(read_end, fcntl.F_DUPFD_CLOEXEC, 10)
        os.close(read_end)
        try:
            process = await asyncio.create_subprocess_exec(
                *handing_over(listening, version.command),
                cwd=version.folder,
                env={**os.environ, "NOTIFY_SOCKET": os.fspath(address), PARENT_VARIABLE: str(inherited)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=(listening.fileno(), inherited),
                start_new_session=True,
            )
        except BaseException:
            os.close(lifeline)
            receiver.close()
            address.unlink(missing_ok=True)
            raise
        finally:
            os.close(inherited)
        server = cls(version, process, log)
        loop = asyncio.get_running_loop()
        loop.add_reader(receiver, server._hear, receiver)

        def forget(_: object) -> None:
            loop.remove_reader(receiver)
            receiver.close()
            address.unlink(missing_ok=True)
            os.close(lifeline)

        server.ended.add_done_callback(forget)
        return server

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it has said that it takes requests, and still runs."""
        return self._ready.is_set() and not self.ended.done()

    @property
    def failure(self) -> str:
        """Of a server that has ended by itself: how, and what it has printed last."""
        when = "" if self._ready.is_set() else " before it was ready"
        return f"its server ended{when} ({self.ended.result()}){self._printed}"

    @property
    def _printed(self) -> str:
        return "".join([". It printed last:", *(f"\n  {line}" for line in self.last_lines)]) if self.last_lines else ""

    def _hear(self, receiver: socket.socket) -> None:
        with suppress(OSError):
            for line in receiver.recv(4096).decode(errors="replace").splitlines():
                name, _, value = line.partition("=")
                if (name, value) == ("READY", "1"):
                    self._ready.set()
                elif name == "STATUS":
                    self.status = value
                    self._log(f"status: {value}")

    async def _until_ended(self) -> str:
        lines = asyncio.create_task(self._read_lines())
        code = await self._process.wait()
        with suppress(ProcessLookupError, PermissionError):  # what it has left would keep the port
            os.killpg(self.pid, signal.SIGKILL)
        await lines
        how = f"exit code {code}" if code >= 0 else f"{signal.Signals(-code).name}"
        self._log(f"ended with {how}")
        return how

    async def _read_lines(self) -> None:
        assert self._process.stdout is not None
        rest = b""
        while block := await self._process.stdout.read(65536):
            *whole, rest = (rest + block).split(b"\n")
            if len(rest) > _LONGEST_LINE:
                whole, rest = [*whole, rest], b""
            for line in whole:
                self._print(line)
        if rest:
            self._print(rest)

    def _print(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode(errors="replace").rstrip()
        self.last_lines.append(text)
        self._log(text)

    async def until_ready(self, limit: float) -> None:
        """Wait until it takes requests.

        Args:
            limit: In seconds.

        Raises:
            NeverReadyError: It has ended, or the time is over.
        """
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait((ready, self.ended), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self.ended.done():
            raise NeverReadyError(self.failure)
        if not self._ready.is_set():
            doing = f" ({self.status})" if self.status else ""
            raise NeverReadyError(f"its server was not ready within {limit:g} s{doing}{self._printed}")

    async def drain(self, limit: float) -> None:
        """Let it finish what it has accepted, and end.

        Args:
            limit: In seconds; what still runs then is killed.
        """
        if not self.ended.done():
            with suppress(ProcessLookupError):
                self._process.terminate()
            await asyncio.wait((self.ended,), timeout=limit)
            if not self.ended.done():
                self._log(f"is killed: it has not finished its requests within {limit:g} s")
        await self.kill()

    async def kill(self) -> None:
        """End it at once."""
        if not self.ended.done():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        await asyncio.wait((self.ended,))
