"""Sockets handed over and notifications, against what systemd's manual pages say."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("sockets are handed over on POSIX systems", allow_module_level=True)

from domainclip.errors import ConfigurationError
from domainclip.service.activation import (
    PARENT_VARIABLE,
    handing_over,
    inherited_socket,
    listening_socket,
    notify,
)

TAKE = """
import os
from domainclip.service.activation import inherited_socket
found = inherited_socket()
print(found.getsockname()[1], found.fileno(), inherited_socket(), "LISTEN_FDS" in os.environ, found.get_inheritable())
"""


def test_a_socket_is_handed_over_once() -> None:
    with listening_socket("127.0.0.1", 0) as listening:
        command = handing_over(listening, [sys.executable, "-c", TAKE])
        done = subprocess.run(command, pass_fds=[listening.fileno()], capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(listening.getsockname()[1]), "3", "None", "False", "False"]


def test_a_socket_for_another_process_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_FDS", "1")
    for number in ("", str(os.getpid() + 1)):
        monkeypatch.setenv("LISTEN_PID", number)
        assert inherited_socket() is None
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(ConfigurationError, match="2 sockets were handed over"):
        inherited_socket()


def test_what_was_handed_over_does_not_listen() -> None:
    code = "from domainclip.service.activation import inherited_socket; inherited_socket()"
    with socket.socket() as idle:
        command = handing_over(idle, [sys.executable, "-c", code])
        done = subprocess.run(command, pass_fds=[idle.fileno()], capture_output=True, text=True)
    assert "does not listen for connections" in done.stderr


def test_a_port_in_use_is_waited_for() -> None:
    with listening_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(
            ConfigurationError, match=f"Port {port} of 127.0.0.1 cannot be used: another program listens"
        ):
            listening_socket("127.0.0.1", port)
        assert time.monotonic() - began < 0.05
        with pytest.raises(ConfigurationError):
            listening_socket("127.0.0.1", port, 0.1)
        assert time.monotonic() - began > 0.1
    listening_socket("127.0.0.1", port, 0.1).close()


def test_hosts_that_are_not_here() -> None:
    with pytest.raises(ConfigurationError, match="is not known"):
        listening_socket("no-such-host.invalid", 0)
    with pytest.raises(
        ConfigurationError, match=r"Port 0 of 192\.0\.2\.1 cannot be used"
    ):  # RFC 5737: of documentation
        listening_socket("192.0.2.1", 0)


@pytest.mark.parametrize("kind", ["file", "abstract", "gone", "none"])
def test_notifications(kind: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    path = tmp_path_factory.mktemp("n") / "notify"
    address = f"@{path.name}-{os.getpid()}" if kind == "abstract" else str(path)
    monkeypatch.setenv("NOTIFY_SOCKET", "" if kind == "none" else address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        if kind in ("file", "abstract"):
            receiver.bind(f"\0{address[1:]}" if kind == "abstract" else address)
            receiver.settimeout(5)
        notify("READY=1\nSTATUS=ready")
        if kind in ("file", "abstract"):
            assert receiver.recv(100) == b"READY=1\nSTATUS=ready"


def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    code = "import time; from domainclip.service.activation import follow_parent as follow\n"
    code += "follow(); print('up', flush=True); time.sleep(60)"
    read_end, write_end = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", code],
        pass_fds=[read_end],
        env={**os.environ, PARENT_VARIABLE: str(read_end)},
        stdout=subprocess.PIPE,
    ) as process:
        os.close(read_end)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        assert process.poll() is None
        os.close(write_end)
        assert process.wait(10) == -15
