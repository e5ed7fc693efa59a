"""Deployments of servers that keep the contract of the real one and start at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from domainclip.errors import CLIPFinetuningError
from domainclip.service.deploy import local

FAKE = Path(__file__).with_name("fake_server.py")


@dataclass
class Deployment:
    """One deployment; ``say`` collects what was said meanwhile."""

    state: Path
    name: str = "d"
    said: list[str] = field(default_factory=list)

    def deploy(self, model: str, *options: object, watch_s: float = 0.0, ready_s: float = 20.0) -> str:
        return local.deploy(
            self.name,
            model,
            self.command(model, *options),
            port=None if local.is_running(self.name) else 0,
            watch_s=watch_s,
            ready_s=ready_s,
            say=self.said.append,
        )

    def command(self, model: str, *options: object) -> tuple[str, ...]:
        return (sys.executable, str(FAKE), model, *map(str, options))

    def roll_back(self) -> str:
        return local.roll_back(self.name, say=self.said.append)

    @property
    def status(self) -> dict[str, Any]:
        return local.status_of(self.name)

    @property
    def outcomes(self) -> list[str]:
        return [each["outcome"] for each in self.status["versions"]]

    @property
    def port(self) -> int:
        return int(self.status["port"])


def wait_until(happens: Callable[[], bool], seconds: float = 20.0) -> None:
    """Until something is so; fails where it never is."""
    until = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < until, "it has not happened in time"
        time.sleep(0.02)


@pytest.fixture
def wait() -> Callable[..., None]:
    return wait_until


@pytest.fixture
def deployment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    if sys.platform == "win32":
        pytest.skip("deployments are for POSIX systems")
    state = tmp_path_factory.mktemp("s")  # sockets have short paths
    monkeypatch.setenv("DOMAINCLIP_STATE", str(state))
    found = Deployment(state)
    yield found
    with suppress(CLIPFinetuningError):
        monkeypatch.setenv("DOMAINCLIP_STATE", str(found.state))
        supervisor = found.status["supervisor"]
        try:
            local.stop(found.name)
        except CLIPFinetuningError:
            if supervisor is not None:
                with suppress(ProcessLookupError):
                    os.kill(supervisor, signal.SIGKILL)
