"""Keeps a model served at an address: owns the listening socket, starts servers, and exchanges them without a gap.

The socket outlives every server. While one version takes the place of another, and while a server that has crashed is
started again, connections wait in the socket's queue, and none is refused.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import time
from collections.abc import Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from domainclip.service.activation import notify
from domainclip.service.deploy.control import Say, listen
from domainclip.service.deploy.server_process import NeverReadyError, ServerProcess
from domainclip.service.deploy.state import CONTROL, DeploymentError, History, Outcome, Version

WATCH_S, READY_S = 30.0, 600.0
"""A new version is watched for so long, and has so long to get ready, unless a request says otherwise, in seconds."""
_DRAIN_S = 60.0
_POLL_S = 1.0
_HEALTH_S = 5.0
_MISSES = 3  # a probe may fail for once under load
_STEADY_S = 60.0  # a server that ran for so long has not crashed because of its start
_LONGEST_PAUSE_S = 30.0


class Supervisor:
    """One deployment's supervisor.

    Args:
        history: Of the deployment.
        listening: Where requests arrive.
        log: Takes a line.
    """

    def __init__(self, history: History, listening: socket.socket, log: Say) -> None:
        self.history, self._listening, self._log = history, listening, log
        self._process: ServerProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._draining: set[asyncio.Task[None]] = set()
        self._exchange = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_watching = False
        self._give_back = asyncio.Event()
        self._stopping = asyncio.Event()
        self._restarts = 0
        self._began = time.time()

    @property
    def address(self) -> tuple[str, int]:
        """The host and port by which this machine reaches the servers."""
        host, port = self._listening.getsockname()[:2]
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port

    async def run(self) -> None:
        """Serve the current version until it is asked to stop, by a request or a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._take_up()
        control = await listen(self.history.folder, self._answer)
        try:
            await self._stopping.wait()
        finally:
            notify("STOPPING=1")
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._retire()
            await asyncio.gather(*self._draining)
            control.close()
            (self.history.folder / CONTROL).unlink(missing_ok=True)

    def _reload(self) -> None:
        if self._process is not None and not self._process.ended.done():
            os.kill(self._process.pid, signal.SIGHUP)

    def _take_up(self) -> None:
        """Go on where the supervisor before this one ended, however it did."""
        current = self.history.current
        lost: dict[int, Outcome] = {
            each.number: "failed" for each in self.history.versions if each.outcome == "starting"
        }
        if lost:
            self.history.mark(lost, reason="its supervisor ended while it was being started")
        if current is None:
            return
        if current.outcome == "watched":
            self._begin(self._watch_again(current))
        else:
            self._keep(current, None)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _watch_again(self, version: Version) -> None:
        """A version that was being watched when the supervisor ended may be why it did: it is watched once more."""
        async with self._exchange:
            process = self._process = await self._start(version)
            try:
                await process.until_ready(READY_S)
                self._say_ready(version)
                failure = await self._watch(process, WATCH_S)
            except NeverReadyError as error:
                failure = str(error)
            if failure:
                self._log(await self._take_back(version, process, failure, self._log))
            else:
                self.history.mark({version.number: "in use"})
                self._keep(version, process)

    # Requests

    async def _answer(self, request: dict[str, Any], say: Say) -> dict[str, Any]:
        def tell(text: str) -> None:
            self._log(text)
            say(text)

        if request.get("command") == "status":
            return await self._status()
        if self._stopping.is_set():
            raise DeploymentError(f"The deployment {self.history.folder.name} is being stopped")
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            match request.get("command"):
                case "deploy":
                    return await self._deploy(request, tell)
                case "rollback":
                    return await self._roll_back(tell)
                case "stop":
                    self._log("Asked to stop")
                    self._stopping.set()
                    return {}
        finally:
            self._tasks.discard(task)
        raise DeploymentError(f"The supervisor does not know the command {request.get('command')!r}")

    async def _status(self) -> dict[str, Any]:
        process = self._process
        return {
            "name": self.history.folder.name,
            "host": self.history.host,
            "port": self._listening.getsockname()[1],
            "supervisor": os.getpid(),
            "since": self._began,
            "server": process.pid if process is not None and not process.ended.done() else None,
            "doing": process.status if process is not None else "",
            "restarts": self._restarts,
            "health": await self._health() if process is not None and process.is_ready else {},
            "versions": [asdict(each) for each in self.history.versions],
        }

    async def _deploy(self, request: Mapping[str, Any], say: Say) -> dict[str, Any]:
        if self._exchange.locked():
            raise self._busy()
        async with self._exchange:
            version = self.history.add(request["model"], tuple(request["command_line"]), request["folder"])
            say(f"Version {version.number} is being started: {version.model}")
            earlier = self.history.current
            outcomes: dict[int, Outcome] = {version.number: "watched"}
            if earlier is not None:
                outcomes[earlier.number] = "replaced"
            try:
                process = await self._exchange_for(version, outcomes, float(request["ready_s"]), say)
            except (NeverReadyError, OSError) as error:
                self.history.mark({version.number: "failed"}, reason=str(error))
                stays = self._nothing_left() if earlier is None else f"version {earlier.number} stays in use"
                raise DeploymentError(f"Version {version.number} failed, and {stays}: {error}") from None
            except asyncio.CancelledError:
                self.history.mark({version.number: "failed"}, reason="the supervisor was stopped")
                raise
            seconds = float(request["watch_s"])
            if seconds > 0:
                say(f"It is watched for {seconds:g} s")
            if failure := await self._watch(process, seconds):
                raise DeploymentError(await self._take_back(version, process, failure, say))
            self.history.mark({version.number: "in use"})
            self._keep(version, process)
            say(f"Version {version.number} is in use")
            return {"version": version.number}

    async def _roll_back(self, say: Say) -> dict[str, Any]:
        current, previous = self.history.current, self.history.previous
        if self._is_watching and current is not None:
            self._give_back.set()
            async with self._exchange:
                pass
            return {"version": self.history.current.number if self.history.current else None}
        if self._exchange.locked():
            raise self._busy()
        if current is None or previous is None:
            raise DeploymentError(
                f"The deployment {self.history.folder.name} has no earlier version to go back to: deploy another model"
            )
        async with self._exchange:
            say(f"Version {previous.number} is being started: {previous.model}")
            outcomes: dict[int, Outcome] = {current.number: "rolled back", previous.number: "in use"}
            try:
                process = await self._exchange_for(previous, outcomes, READY_S, say, reason="asked for")
            except (NeverReadyError, OSError) as error:
                raise DeploymentError(
                    f"Version {current.number} stays in use: version {previous.number} was not started again, {error}"
                ) from None
            self._keep(previous, process)
            return {"version": previous.number}

    def _busy(self) -> DeploymentError:
        return DeploymentError(
            f"Another deployment of {self.history.folder.name} is under way: wait until it has ended "
            "(`domainclip deploy status` says how far it is)"
        )

    def _nothing_left(self) -> str:
        self._stopping.set()
        return "no version is left, and the supervisor ends"

    # Versions

    async def _start(self, version: Version) -> ServerProcess:
        def log(text: str) -> None:
            self._log(f"[{version.number}] {text}")

        return await ServerProcess.start(version, self._listening, self.history.folder, log)

    async def _exchange_for(
        self, version: Version, outcomes: Mapping[int, Outcome], limit: float, say: Say, *, reason: str = ""
    ) -> ServerProcess:
        """Start a version beside what runs; when it is ready, it takes the requests, and what ran finishes its own."""
        process = await self._start(version)
        try:
            await process.until_ready(limit)
            self.history.mark(outcomes, reason=reason)
        except BaseException:
            await process.kill()
            raise
        say(f"Version {version.number} was ready after {time.monotonic() - process.began:.1f} s and takes the requests")
        self._retire()
        self._process = process
        self._say_ready(version)
        return process

    def _retire(self) -> None:
        """Let what runs finish its requests and end."""
        if self._keeper is not None:
            self._keeper.cancel()
        former, self._process, self._keeper = self._process, None, None
        if former is not None:
            task = asyncio.create_task(former.drain(_DRAIN_S))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)

    def _keep(self, version: Version, process: ServerProcess | None) -> None:
        """From now on, start the version whenever it does not run."""
        self._keeper = self._begin(self._keep_up(version, process))

    async def _keep_up(self, version: Version, process: ServerProcess | None) -> None:
        pause = 0.0
        while True:
            if process is None:
                try:
                    process = self._process = await self._start(version)
                    await process.until_ready(READY_S)
                    self._say_ready(version)
                    await self._examine(version)
                except (NeverReadyError, OSError) as error:
                    self._log(f"Version {version.number} does not start: {error}")
                    if process is not None:
                        await process.kill()
            if process is not None:
                await asyncio.wait((process.ended,))
                if time.monotonic() - process.began > _STEADY_S:
                    pause = 0.0
            self._restarts += 1
            self._log(f"Version {version.number} is started again in {pause:g} s")
            await asyncio.sleep(pause)
            process, pause = None, min(max(1.0, 2 * pause), _LONGEST_PAUSE_S)

    async def _watch(self, process: ServerProcess, seconds: float) -> str:
        """Look at a version that has just taken the requests over; says what is wrong with it, or nothing."""
        until, misses = time.monotonic() + seconds, 0
        self._give_back.clear()
        asked = asyncio.create_task(self._give_back.wait())
        self._is_watching = True
        try:
            while True:
                # Until the version before has ended, it may be the one that answers.
                if not self._draining:
                    health = await self._examine(process.version)
                    misses = 0 if health["ready"] else misses + 1
                    if misses == _MISSES:
                        return f"it was not ready any more ({health['status']})"
                    if time.monotonic() >= until:
                        return ""
                await asyncio.wait(
                    (process.ended, asked, *self._draining), timeout=_POLL_S, return_when=asyncio.FIRST_COMPLETED
                )
                if process.ended.done():
                    return process.failure
                if asked.done():
                    return "asked for"
        finally:
            asked.cancel()
            self._is_watching = False

    async def _take_back(self, version: Version, process: ServerProcess, failure: str, say: Say) -> str:
        """Go back to the version before one that has failed; says how that ended."""
        previous = self.history.previous
        if previous is None:
            self._retire()
            self.history.mark({version.number: "failed"}, reason=failure)
            return f"Version {version.number} failed, and {self._nothing_left()}: {failure}"
        say(f"Version {version.number} is rolled back ({failure}). Version {previous.number} is being started")
        outcomes: dict[int, Outcome] = {version.number: "rolled back", previous.number: "in use"}
        try:
            again = await self._exchange_for(previous, outcomes, READY_S, say, reason=failure)
        except (NeverReadyError, OSError) as error:
            if not process.ended.done():
                self.history.mark({version.number: "in use"})
                self._keep(version, process)
                return (
                    f"Version {version.number} failed: {failure}. It stays in use, since version {previous.number} "
                    f"could not be started again: {error}"
                )
            self.history.mark(outcomes, reason=failure)
            self._keep(previous, None)
            return (
                f"Version {version.number} was rolled back: {failure}. Version {previous.number} has not started: "
                f"{error}. It is tried again and again"
            )
        self._keep(previous, again)
        return f"Version {version.number} was rolled back: {failure}. Version {previous.number} is in use again"

    async def _examine(self, version: Version) -> dict[str, Any]:
        """The health of the only version that serves, whose model becomes known by it."""
        health = await self._health()
        if fingerprint := health.get("fingerprint"):
            self.history.identify(version.number, str(fingerprint))
        return health

    def _say_ready(self, version: Version) -> None:
        notify(f"READY=1\nSTATUS=Version {version.number} serves {version.model}")

    async def _health(self) -> dict[str, Any]:
        """What ``/health/ready`` says, with whether it is ready."""

        def get() -> dict[str, Any]:
            connection = http.client.HTTPConnection(*self.address, timeout=_HEALTH_S)
            try:
                connection.request("GET", "/health/ready")
                answer = connection.getresponse()
                found = json.loads(answer.read(65536))
                return {"status": f"HTTP {answer.status}", **found, "ready": answer.status == 200}
            except (OSError, http.client.HTTPException, ValueError, TypeError) as error:
                return {"status": f"no answer: {error or type(error).__name__}", "ready": False}
            finally:
                connection.close()

        return await asyncio.to_thread(get)
