"""Files by which systemd and launchd keep a deployment's supervisor running, after a restart of the machine, too."""

from __future__ import annotations

import ipaddress
import os
import plistlib
import pwd
import shlex
import shutil
import socket
import subprocess
import time
from importlib.resources import files
from pathlib import Path
from typing import Literal

from domainclip.errors import ConfigurationError
from domainclip.files import write_bytes, write_text
from domainclip.service.deploy.control import Say
from domainclip.service.deploy.local import deploy, is_running, note_down, status_of, url_of
from domainclip.service.deploy.run import supervisor_command
from domainclip.service.deploy.state import DeploymentError, History

_SYSTEM_UNITS = Path("/etc/systemd/system")


def install(
    to: Literal["systemd", "launchd"],
    name: str,
    model: str,
    command: tuple[str, ...],
    *,
    host: str | None,
    port: int | None,
    user: str | None,
    enable: bool,
    watch_s: float,
    ready_s: float,
    say: Say,
) -> str:
    """Make a model the version of a deployment that the machine's own service manager keeps running.

    Args:
        to: The service manager.
        name: Of the deployment.
        model: For the record.
        command: Starts its server.
        host: Where to listen; None is where the deployment does, or else at this machine alone.
        port: Where to listen; None is where the deployment does, or else 8000.
        user: Who runs it, under root's systemd.
        enable: Start it, too, and wait until it is ready.
        watch_s: Of a deployment that runs: so long the version is watched, in seconds.
        ready_s: So long it has to get ready, in seconds.
        say: Told what is being done.

    Returns:
        What was written and what is to be done, for the user.

    Raises:
        DeploymentError: The version does not serve; the message says what does.
        ConfigurationError: An argument is wrong.
        OSError: A file cannot be written.
    """
    paths = _systemd_paths(name) if to == "systemd" else [_launchd_path(name)]
    if to == "systemd":
        _require_user(user)
    if is_running(name):
        if not all(path.exists() for path in paths):
            raise DeploymentError(
                f"{name} runs already, and not by {to}. Stop it first: domainclip deploy stop --name {name}"
            )
        return deploy(name, model, command, host=host, port=port, watch_s=watch_s, ready_s=ready_s, say=say)
    history = note_down(name, model, command, host=host, port=port)
    commands = write_systemd(history, user) if to == "systemd" else write_launchd(history)
    lines = [f"Written: {path}" for path in paths]
    if not enable:
        return "\n".join([*lines, "Start it with:", *(f"  {shlex.join(each)}" for each in commands)])
    for each in commands:
        say(shlex.join(each))
        if subprocess.run(each).returncode:
            raise DeploymentError(f"{shlex.join(each)} has failed. The files are written: {', '.join(map(str, paths))}")
    until = time.monotonic() + ready_s
    while not (found := status_of(name))["health"].get("ready"):
        if time.monotonic() > until:
            raise DeploymentError(f"{name} was not ready within {ready_s:g} s: domainclip deploy status says more")
        time.sleep(0.5)
    return "\n".join([*lines, f"{name} serves {model} at {url_of(found)}"])


def _systemd_paths(name: str) -> list[Path]:
    home = os.environ.get("XDG_CONFIG_HOME")
    own = (Path(home) if home else Path.home() / ".config") / "systemd" / "user"
    place = _SYSTEM_UNITS if os.geteuid() == 0 else own
    return [place / f"domainclip-{name}.socket", place / f"domainclip-{name}.service"]


def write_systemd(history: History, user: str | None) -> list[list[str]]:
    """Write the units of a deployment: a socket, which outlives even the supervisor, and the service. For root they are
    the system's, and run as another user; for anybody else their own.

    Args:
        history: Of the deployment, whose folder is given to ``user``.
        user: Who runs it, where this is root; otherwise None.

    Returns:
        The commands that start it.

    Raises:
        ConfigurationError: The host is not known.
        OSError: A file cannot be written.
    """
    folder, is_root = history.folder, os.geteuid() == 0
    if user is not None:
        owner = pwd.getpwnam(user)
        for each in (folder, *folder.iterdir()):
            shutil.chown(each, owner.pw_uid, owner.pw_gid)
        folder.parent.chmod(0o755)  # the folder of each deployment is closed to others
    unit = f"domainclip-{folder.name}"
    program, *arguments = supervisor_command(folder.name, log_file=False)
    values = {
        "name": folder.name,
        "unit": unit,
        "user": user,
        "command": " ".join([_escaped(program), *(_escaped(each, dollars=True) for each in arguments)]),
        "state": _escaped(f"DOMAINCLIP_STATE={folder.parent}"),
        "folder": _escaped(str(folder)),
        "address": _stream_address(history.host, history.port),
    }
    for path in _systemd_paths(folder.name):
        write_text(path, _render(f"domainclip{path.suffix}", values))
    systemctl = ["systemctl"] if is_root else ["systemctl", "--user"]
    commands = [[*systemctl, "daemon-reload"], [*systemctl, "enable", "--now", f"{unit}.socket", f"{unit}.service"]]
    # Without it, a user's services end with their session.
    return commands if is_root else [*commands, ["loginctl", "enable-linger"]]


def _require_user(user: str | None) -> None:
    """Refuse to run a server as root, or as somebody who this process may not speak for."""
    if os.geteuid() and user is not None:
        raise ConfigurationError("Only root can run a service as somebody else: leave --run-as out, or use sudo")
    if os.geteuid() == 0:
        try:
            found = pwd.getpwnam(user or "root")
        except KeyError:
            raise ConfigurationError(f"There is no user {user!r} on this machine: give another --run-as") from None
        if found.pw_uid == 0:
            raise ConfigurationError("A server should not run as root: name the user that it runs as with --run-as")


def _render(name: str, values: dict[str, str | None]) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    text = files(__package__).joinpath("files", name).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)


def _escaped(word: str, *, dollars: bool = False) -> str:
    """A word as a unit has it, where ``%`` begins a specifier and, in a command's arguments, ``$`` a variable."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped.replace("$", "$$") if dollars else escaped}"'


def _stream_address(host: str, port: int) -> str:
    """An address as systemd has it, which knows no names."""
    try:
        number = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][4][0]
    except socket.gaierror as error:
        raise ConfigurationError(f"The host {host!r} is not known: {error.strerror}") from None
    is_long = ipaddress.ip_address(number).version == 6
    return f"[{number}]:{port}" if is_long else f"{number}:{port}"


def _launchd_path(name: str) -> Path:
    return Path.home() / "Library" / "LaunchAgents" / f"domainclip.{name}.plist"


def write_launchd(history: History) -> list[list[str]]:
    """Write the property list of a user's agent, by the keys of launchd.plist(5).

    Args:
        history: Of the deployment.

    Returns:
        The command that starts it.

    Raises:
        OSError: The file cannot be written.
    """
    folder = history.folder
    path = _launchd_path(folder.name)
    agent = {
        "Label": path.stem,
        "ProgramArguments": supervisor_command(folder.name, log_file=True),
        "EnvironmentVariables": {"DOMAINCLIP_STATE": str(folder.parent)},
        "WorkingDirectory": str(folder),
        "StandardErrorPath": str(folder / "errors"),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},  # one that was stopped stays so
        "ThrottleInterval": 1,
        "ExitTimeOut": 90,
        "ProcessType": "Interactive",  # others are slowed down in favour of what the user does
        "SoftResourceLimits": {"NumberOfFiles": 8192},
        "Umask": 0o077,
    }
    write_bytes(path, plistlib.dumps(agent))
    return [["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)]]
