"""A supervisor with servers that keep the contract: no request is lost, whatever becomes of them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from domainclip.errors import ConfigurationError
from domainclip.service.deploy import local
from domainclip.service.deploy.control import ask
from domainclip.service.deploy.run import start_detached, supervisor_command
from domainclip.service.deploy.state import DeploymentError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="deployments are for POSIX systems")
Wait = Callable[..., None]


class Clients:
    """Clients that keep their connections and together ask so many times a second."""

    def __init__(self, port: int, count: int = 10, rate: float = 50.0) -> None:
        self.port, self.pause = port, count / rate
        self.models: list[str] = []
        self.failures: list[str] = []
        self._over = threading.Event()
        self.threads = [threading.Thread(target=self._ask_on, daemon=True) for _ in range(count)]

    def _ask_on(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self._over.is_set():
            began = time.monotonic()
            try:
                connection.request("GET", "/v1/models")
                answer = connection.getresponse()
                self.models.append(json.loads(answer.read())["model"])
                assert answer.status == 200
            except Exception as error:
                self.failures.append(repr(error))
                connection.close()
            self._over.wait(max(0.0, began + self.pause - time.monotonic()))
        connection.close()

    @contextmanager
    def asking(self) -> Iterator[Clients]:
        for thread in self.threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self.threads:
                thread.join()


def get(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


@pytest.mark.slow
def test_twenty_deployments_lose_no_request(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("m0")
    with Clients(deployment.port).asking() as clients:
        for number in range(1, 21):
            deployment.deploy(f"m{number}", "--slow", 0.02)
        time.sleep(0.5)
    assert clients.failures == []
    assert set(clients.models) <= {f"m{number}" for number in range(21)} and len(set(clients.models)) > 10
    assert clients.models[-1] == "m20"
    assert deployment.outcomes == ["replaced"] * 20 + ["in use"]
    assert deployment.status["restarts"] == 0
    assert [each["fingerprint"] for each in deployment.status["versions"]] == [f"fp-m{n}" for n in range(21)]


def test_a_version_that_ends_while_it_is_watched_is_rolled_back_by_itself(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("good")
    deployment.deploy("better")
    with pytest.raises(DeploymentError) as raised:
        deployment.deploy("bad", "--crash", 0.3, watch_s=30)
    assert str(raised.value) == ("Version 3 was rolled back: its server ended (exit code 3). Version 2 is in use again")
    assert get(deployment.port)["model"] == "better"
    assert deployment.outcomes == ["replaced", "in use", "rolled back"]
    assert deployment.status["versions"][2]["reason"] == "its server ended (exit code 3)"


def test_connections_wait_while_a_version_is_rolled_back(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("good", "--start", 0.5)
    said: list[str] = []

    def deploy() -> None:
        with pytest.raises(DeploymentError):
            deployment.deploy("bad", "--crash", 0.2, watch_s=30)
        said.append("rolled back")

    thread = threading.Thread(target=deploy)
    thread.start()
    while not any("Version 1 is being started" in each for each in deployment.said):
        time.sleep(0.01)
    assert get(deployment.port)["model"] == "good"  # nobody serves at this moment
    thread.join()
    assert said == ["rolled back"]


def test_a_version_that_is_not_ready_any_more_is_rolled_back(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("good")
    with pytest.raises(DeploymentError, match=r"Version 2 was rolled back: it was not ready any more \(unhealthy\)"):
        deployment.deploy("bad", "--sick", 0.0, watch_s=30)
    assert get(deployment.port)["model"] == "good"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ["--refuse"],
            "ended before it was ready (exit code 2). It printed last:\n  Error: new fails its golden check",
        ),
        (["--never"], "was not ready within 0.4 s (loading the model)"),
    ],
)
def test_a_version_that_never_gets_ready_leaves_the_one_before(deployment, options: list[str], why: str) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("old")
    before = deployment.status
    with pytest.raises(DeploymentError) as raised:
        deployment.deploy("new", *options, ready_s=0.4)
    assert str(raised.value).startswith(f"Version 2 failed, and version 1 stays in use: its server {why}")
    after = deployment.status
    assert (after["server"], after["restarts"]) == (before["server"], 0)
    assert deployment.outcomes == ["in use", "failed"]
    assert get(deployment.port)["model"] == "old"


def test_a_command_that_cannot_be_run_leaves_the_one_before(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("old")
    with pytest.raises(DeploymentError, match="FileNotFoundError"):
        local.deploy("d", "new", ("/no/such/python",), watch_s=0, ready_s=5, say=deployment.said.append)
    assert get(deployment.port)["model"] == "old"


def test_a_first_version_that_fails_leaves_nothing(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeploymentError, match="Version 1 failed, and no version is left, and the supervisor ends"):
        deployment.deploy("new", "--refuse")
    wait(lambda: deployment.status["supervisor"] is None)
    with pytest.raises(DeploymentError, match="Version 2 failed, and no version is left"):
        deployment.deploy("new", "--crash", 0.1, watch_s=30)
    wait(lambda: deployment.status["supervisor"] is None)
    assert deployment.outcomes == ["failed", "failed"]


def test_roll_back_on_demand_and_once_more(deployment) -> None:  # type: ignore[no-untyped-def]
    for model in ("a", "b", "c"):
        deployment.deploy(model)
    assert deployment.roll_back() == "Version 2 of d serves again"
    assert deployment.roll_back() == "Version 1 of d serves again"
    assert get(deployment.port)["model"] == "a"
    assert deployment.outcomes == ["in use", "rolled back", "rolled back"]
    with pytest.raises(DeploymentError, match="has no earlier version to go back to"):
        deployment.roll_back()


def test_roll_back_while_a_version_is_watched(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("old")
    errors: list[str] = []

    def deploy() -> None:
        with pytest.raises(DeploymentError) as raised:
            deployment.deploy("new", watch_s=60)
        errors.append(str(raised.value))

    thread = threading.Thread(target=deploy)
    thread.start()
    wait(lambda: deployment.outcomes == ["replaced", "watched"])
    assert deployment.roll_back() == "Version 1 of d serves again"
    thread.join()
    assert errors == ["Version 2 was rolled back: asked for. Version 1 is in use again"]


def test_a_version_to_go_back_to_that_does_not_start_leaves_the_current_one(deployment, tmp_path) -> None:  # type: ignore[no-untyped-def]
    script = tmp_path / "server.py"
    script.write_text(f"import runpy; runpy.run_path({deployment.command('')[1]!r}, run_name='__main__')")
    local.deploy("d", "a", (sys.executable, str(script), "a"), port=0, watch_s=0, ready_s=20, say=print)
    deployment.deploy("b")
    script.unlink()
    with pytest.raises(DeploymentError, match="Version 2 stays in use: version 1 was not started again"):
        deployment.roll_back()
    assert get(deployment.port)["model"] == "b"
    assert deployment.outcomes == ["replaced", "in use"]


def test_two_deployments_at_once(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("old")
    thread = threading.Thread(target=deployment.deploy, args=("first", "--start", 1.0))
    thread.start()
    wait(lambda: deployment.outcomes == ["in use", "starting"])
    with pytest.raises(DeploymentError, match="Another deployment of d is under way"):
        deployment.deploy("second")
    with pytest.raises(DeploymentError, match="Another deployment of d is under way"):
        deployment.roll_back()
    thread.join()
    assert deployment.outcomes == ["replaced", "in use"]
    assert get(deployment.port)["model"] == "first"


def test_a_killed_server_is_started_again_and_connections_wait(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a", "--start", 0.3)
    for _ in range(2):
        server = deployment.status["server"]
        os.kill(server, signal.SIGKILL)
        assert get(deployment.port)["pid"] != server
    assert deployment.status["restarts"] == 2
    assert deployment.outcomes == ["in use"]


def test_servers_end_with_a_killed_supervisor_and_the_next_one_goes_on(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    deployment.deploy("b")
    before = deployment.status
    os.kill(before["supervisor"], signal.SIGKILL)
    wait(lambda: deployment.status["supervisor"] is None)
    start_detached("d", "127.0.0.1", before["port"])  # the port is free again at once
    after = deployment.status
    assert after["supervisor"] != before["supervisor"]
    assert after["port"] == before["port"]
    found = get(after["port"])
    assert found["model"] == "b" and found["pid"] != before["server"]
    assert deployment.outcomes == ["replaced", "in use"]


def test_a_supervisor_killed_while_it_watched_watches_again(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    port = deployment.port

    def deploy() -> None:
        with pytest.raises(DeploymentError, match="ended before it had answered"):
            deployment.deploy("b", "--crash", 0.8, watch_s=60)

    thread = threading.Thread(target=deploy)
    thread.start()
    wait(lambda: deployment.outcomes == ["replaced", "watched"])
    os.kill(deployment.status["supervisor"], signal.SIGKILL)
    thread.join()
    start_detached("d", "127.0.0.1", port)
    wait(lambda: deployment.outcomes == ["in use", "rolled back"])
    assert get(port)["model"] == "a"


def test_a_supervisor_killed_while_a_version_started_goes_on_with_the_one_before(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    port = deployment.port

    def deploy() -> None:
        with pytest.raises(DeploymentError):
            deployment.deploy("b", "--start", 60)

    thread = threading.Thread(target=deploy)
    thread.start()
    wait(lambda: deployment.outcomes == ["in use", "starting"])
    os.kill(deployment.status["supervisor"], signal.SIGKILL)
    thread.join()
    start_detached("d", "127.0.0.1", port)
    assert get(port)["model"] == "a"
    assert deployment.status["versions"][1]["reason"] == "its supervisor ended while it was being started"


def test_stopping_finishes_what_was_accepted(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a", "--slow", 0.5)
    port, answers = deployment.port, []
    thread = threading.Thread(target=lambda: answers.append(get(port)))
    thread.start()
    time.sleep(0.2)
    local.stop("d")
    thread.join()
    assert [each["model"] for each in answers] == ["a"]
    with pytest.raises(ConnectionRefusedError):
        get(port)
    assert deployment.status["supervisor"] is None
    deployment.deploy("b")
    assert deployment.port == port or deployment.port > 0


def test_stopping_while_a_version_starts(deployment, wait: Wait) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    errors: list[str] = []

    def deploy() -> None:
        with pytest.raises(DeploymentError) as raised:
            deployment.deploy("b", "--start", 60)
        errors.append(str(raised.value))

    thread = threading.Thread(target=deploy)
    thread.start()
    wait(lambda: deployment.outcomes == ["in use", "starting"])
    local.stop("d")
    thread.join()
    assert errors == ["The supervisor is being stopped"]
    assert deployment.outcomes == ["in use", "failed"]


def test_an_address_of_ipv6(deployment) -> None:  # type: ignore[no-untyped-def]
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    command = deployment.command("a")
    said = local.deploy("d", "a", command, host="::1", port=0, watch_s=0, ready_s=20, say=print)
    assert said == f"Version 1 of d serves a at http://[::1]:{deployment.port}"
    assert deployment.status["health"]["ready"] is True


def test_a_port_in_use_is_said_at_once(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    with pytest.raises(ConfigurationError, match=r"cannot be used: another program listens there. Give another --port"):
        local.deploy("other", "b", deployment.command("b"), port=deployment.port, watch_s=0, ready_s=9, say=print)
    with pytest.raises(ConfigurationError, match="d already listens at port"):
        local.deploy("d", "b", deployment.command("b"), port=1, watch_s=0, ready_s=9, say=print)


def test_only_the_owner_may_ask(deployment) -> None:  # type: ignore[no-untyped-def]
    deployment.deploy("a")
    folder = local.deployment_folder("d")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "control").stat().st_mode & 0o777 == 0o600


def test_another_user_may_not(deployment, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """In a forked process, since somebody else may not be able to read the interpreter."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    deployment.state = Path(tempfile.mkdtemp(prefix="dc-"))  # pytest's folders are closed to others
    deployment.state.chmod(0o711)
    monkeypatch.setenv("DOMAINCLIP_STATE", str(deployment.state))
    deployment.deploy("a")
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            said = []
            for ask_anyway in (lambda: local.stop("d"), lambda: ask(deployment.state / "d", {"command": "stop"})):
                try:
                    ask_anyway()
                    said.append("done")
                except DeploymentError as error:
                    said.append(str(error))
            os.write(write_end, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write_end)
    with open(read_end) as lines:
        first, second = lines.read().splitlines()
    assert first.startswith("The deployment d in ") and "is root's: ask them, or set DOMAINCLIP_STATE" in first
    assert second.startswith("The supervisor of d cannot be asked") and second.endswith("Permission denied")
    assert get(deployment.port)["model"] == "a"
    local.stop("d")
    shutil.rmtree(deployment.state)


def test_a_socket_of_systemd_is_taken(deployment) -> None:  # type: ignore[no-untyped-def]
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("systemd-socket-activate is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    local.note_down("d", "a", deployment.command("a"), port=port)
    command = supervisor_command("d", log_file=True)
    environment = [f"--setenv={name}" for name in ("DOMAINCLIP_STATE", "PYTHONPATH") if name in os.environ]
    with subprocess.Popen(
        ["systemd-socket-activate", f"--listen=127.0.0.1:{port}", *environment, *command], stderr=subprocess.DEVNULL
    ) as process:
        while True:
            try:
                found = get(port)  # the first connection starts the supervisor, and waits for the server
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        assert found["model"] == "a"
        assert deployment.status["supervisor"] == process.pid and deployment.status["port"] == port
        assert deployment.status["versions"][0]["fingerprint"] == "fp-a"
        local.stop("d")
        assert process.wait(10) == 0
