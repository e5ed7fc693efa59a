"""What systemd and launchd are given, read by systemd itself and by the property lists' own reader."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("deployments are for POSIX systems", allow_module_level=True)

from domainclip.errors import ConfigurationError
from domainclip.service.deploy import units
from domainclip.service.deploy.local import note_down, status_of
from domainclip.service.deploy.state import DeploymentError, History, state_root

COMMAND = ("python", "-m", "domainclip", "serve", "--model", "/models/m")


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's own, who is not root."""
    place = tmp_path_factory.mktemp("h")
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("DOMAINCLIP_STATE", str(place / "state"))
    (place / "state").mkdir()
    owner = os.stat(place).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner or 1000)
    return place


@pytest.fixture
def history(home: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 0)
        found = note_down("parts", "/models/m", COMMAND, host="127.0.0.1", port=8010)
    if os.getuid() == 0:
        os.chown(found.folder, os.geteuid(), -1)
    return found


def install(to: str, name: str = "parts", command: tuple[str, ...] = COMMAND, user: str | None = None) -> str:
    return units.install(
        to,  # type: ignore[arg-type]
        name,
        "/models/new",
        command,
        host=None,
        port=None,
        user=user,
        enable=False,
        watch_s=0,
        ready_s=9,
        say=print,
    )


def verified(paths: list[Path], *options: str) -> str:
    """What systemd finds wrong with units."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *options, *map(str, paths)], capture_output=True, text=True
    )
    names = {path.name for path in paths}
    return "\n".join(line for line in done.stderr.splitlines() if any(name in line for name in names))


def test_units_of_a_user(history: History, home: Path) -> None:
    commands = units.write_systemd(history, None)
    folder = home / ".config" / "systemd" / "user"
    assert sorted(os.listdir(folder)) == ["domainclip-parts.service", "domainclip-parts.socket"]
    service, listener = ((folder / f"domainclip-parts.{kind}").read_text() for kind in ("service", "socket"))
    assert f'ExecStart="{sys.executable}" "-m" "domainclip.service.deploy.run" "parts"' in service
    assert f'Environment="DOMAINCLIP_STATE={home}/state"' in service
    assert "User=" not in service and "ProtectSystem" not in service and "{" not in service
    assert "ListenStream=127.0.0.1:8010" in listener
    assert ["systemctl", "--user", "enable", "--now", "domainclip-parts.socket", "domainclip-parts.service"] in commands
    assert verified([folder / "domainclip-parts.socket", folder / "domainclip-parts.service"]) == ""


def test_units_of_the_system(history: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(units, "_SYSTEM_UNITS", tmp_path)
    given: list[str] = []
    monkeypatch.setattr(shutil, "chown", lambda path, user, group: given.append(Path(path).name))
    commands = units.write_systemd(history, "daemon")
    service = (tmp_path / "domainclip-parts.service").read_text()
    assert "User=daemon\n" in service and "ProtectSystem=strict\n" in service
    assert f'ReadWritePaths="{history.folder}"' in service
    assert given == ["parts", "deployment.json"]
    assert commands[0] == ["systemctl", "daemon-reload"]
    assert verified([tmp_path / "domainclip-parts.socket", tmp_path / "domainclip-parts.service"]) == ""


def test_a_server_does_not_run_as_root(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="Only root can run a service as somebody else"):
        install("systemd", user="daemon")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for user, why in ((None, "should not run as root"), ("root", "should not run as root"), ("nobody-here", "no user")):
        with pytest.raises(ConfigurationError, match=why):
            install("systemd", user=user)
    assert len(status_of("parts")["versions"]) == 1


@pytest.mark.parametrize(
    ("host", "address"), [("::1", "[::1]:80"), ("0.0.0.0", "0.0.0.0:80"), ("127.0.0.2", "127.0.0.2:80")]
)
def test_addresses_as_systemd_has_them(host: str, address: str) -> None:
    assert units._stream_address(host, 80) == address


def test_words_as_units_have_them(history: History, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd itself takes them apart again."""
    python = home / "py thon$%n"
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    units.write_systemd(history, None)
    folder = home / ".config" / "systemd" / "user"
    assert verified([folder / "domainclip-parts.socket", folder / "domainclip-parts.service"]) == ""


# launchd.plist(5)
KEYS = {
    "Label": str,
    "ProgramArguments": list,
    "EnvironmentVariables": dict,
    "WorkingDirectory": str,
    "StandardErrorPath": str,
    "RunAtLoad": bool,
    "KeepAlive": dict,
    "ThrottleInterval": int,
    "ExitTimeOut": int,
    "ProcessType": str,
    "SoftResourceLimits": dict,
    "Umask": int,
}


def test_an_agent_of_launchd(history: History, home: Path) -> None:
    commands = units.write_launchd(history)
    path = home / "Library" / "LaunchAgents" / "domainclip.parts.plist"
    found = plistlib.loads(path.read_bytes())
    assert {key: type(value) for key, value in found.items()} == KEYS
    assert found["Label"] == "domainclip.parts"
    assert found["ProgramArguments"] == [sys.executable, "-m", "domainclip.service.deploy.run", "parts", "--log-file"]
    assert found["EnvironmentVariables"] == {"DOMAINCLIP_STATE": str(home / "state")}
    assert found["KeepAlive"] == {"SuccessfulExit": False} and found["Umask"] == 0o77
    assert commands == [["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)]]


def test_what_is_installed_is_served_at_the_next_start(history: History, home: Path) -> None:
    said = install("launchd")
    assert said.startswith(f"Written: {home}/Library/LaunchAgents/domainclip.parts.plist\nStart it with:\n  launchctl ")
    found = status_of("parts")
    assert (found["host"], found["port"]) == ("127.0.0.1", 8010)
    assert [(each["model"], each["outcome"]) for each in found["versions"]] == [
        ("/models/m", "replaced"),
        ("/models/new", "in use"),
    ]


def test_a_deployment_that_runs_without_a_unit_is_not_taken_over(deployment, monkeypatch, tmp_path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(units, "_SYSTEM_UNITS", tmp_path)
    deployment.deploy("a")

    for to in ("systemd", "launchd"):
        with pytest.raises(DeploymentError, match=f"d runs already, and not by {to}. Stop it first"):
            install(to, "d", user=None if to == "launchd" else "daemon")
    units.write_launchd(History.read(state_root() / "d"))
    assert install("launchd", "d", deployment.command("b")).startswith(
        "Version 2 of d serves /models/new at http://127.0.0.1:"
    )
