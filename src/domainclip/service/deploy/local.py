"""What a user does to a deployment on this machine: deploy to it, look at it, roll it back, stop it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from domainclip.errors import ConfigurationError
from domainclip.service.deploy.control import NotRunningError, Say, ask
from domainclip.service.deploy.run import alone, start_detached
from domainclip.service.deploy.state import DeploymentError, History, Outcome, deployment_folder, state_root

HOST, PORT = "127.0.0.1", 8000
_STOP_S = 120.0  # a server that drains for too long is killed by its supervisor sooner


def deploy(
    name: str,
    model: str,
    command: tuple[str, ...],
    *,
    host: str | None = None,
    port: int | None = None,
    watch_s: float,
    ready_s: float,
    say: Say,
) -> str:
    """Make a model the version that a deployment serves; starts the deployment where it does not run.

    Args:
        name: Of the deployment.
        model: For the record.
        command: Starts its server.
        host: Where to listen; None is where the deployment does, or else at this machine alone.
        port: Where to listen; None is where the deployment does, or else 8000.
        watch_s: So long the version is watched, in seconds.
        ready_s: So long it has to get ready, in seconds.
        say: Told what is being done.

    Returns:
        A sentence for the user.

    Raises:
        DeploymentError: The version does not serve now; the message says what does.
        ConfigurationError: The address cannot be listened at, or is not the deployment's.
    """
    folder = deployment_folder(name, make=True)
    try:
        found = ask(folder, {"command": "status"})
    except NotRunningError:
        known = _history(name)
        start_detached(
            name,
            host if host is not None else known.host if known is not None else HOST,
            port if port is not None else known.port if known is not None else PORT,
        )
        found = ask(folder, {"command": "status"})
    if (host or found["host"], port or found["port"]) != (found["host"], found["port"]):
        raise ConfigurationError(
            f"{name} already listens at port {found['port']} of {found['host']}: leave --host and --port out, "
            f"give another --name, or stop it first with: domainclip deploy stop --name {name}"
        )
    request = {
        "command": "deploy",
        "model": model,
        "command_line": command,
        "folder": os.getcwd(),
        "watch_s": watch_s,
        "ready_s": ready_s,
    }
    done = ask(folder, request, say)
    return f"Version {done['version']} of {name} serves {model} at {url_of(found)}"


def note_down(
    name: str, model: str, command: tuple[str, ...], *, host: str | None = None, port: int | None = None
) -> History:
    """Make a model the version that a deployment serves when it is next started; nothing runs yet.

    Args:
        name: Of the deployment, which does not run.
        model: For the record.
        command: Starts its server.
        host: Where to listen; None is where the deployment did, or else at this machine alone.
        port: Where to listen; None is where the deployment did, or else 8000.

    Returns:
        The deployment.

    Raises:
        DeploymentError: The name is none, or the deployment is another user's.
        OSError: It cannot be written.
    """
    history = _history(name) or History(deployment_folder(name, make=True), HOST, PORT)
    history.host, history.port = host or history.host, history.port if port is None else port
    current = history.current
    version = history.add(model, command, os.getcwd())
    outcomes: dict[int, Outcome] = {version.number: "in use"}
    if current is not None:
        outcomes[current.number] = "replaced"
    history.mark(outcomes)
    return history


def _history(name: str) -> History | None:
    try:
        return History.read(deployment_folder(name))
    except DeploymentError:
        return None


def deployments() -> list[str]:
    """The deployments of this user.

    Returns:
        Their names.
    """
    root = state_root()
    names = sorted(each.name for each in root.iterdir() if each.is_dir()) if root.is_dir() else []
    return [name for name in names if _history(name) is not None]


def url_of(found: Mapping[str, Any]) -> str:
    """Where a deployment is asked.

    Args:
        found: Its status.

    Returns:
        The URL.
    """
    host = found["host"]
    return f"http://[{host}]:{found['port']}" if ":" in host else f"http://{host}:{found['port']}"


def is_running(name: str) -> bool:
    """Whether a deployment has a supervisor.

    Args:
        name: Of the deployment, which need not be there.

    Returns:
        Whether one answers.

    Raises:
        DeploymentError: The name is none, or the deployment is another user's.
    """
    try:
        ask(deployment_folder(name), {"command": "status"})
    except NotRunningError:
        return False
    return True


def status_of(name: str) -> dict[str, Any]:
    """How a deployment is.

    Args:
        name: Of the deployment.

    Returns:
        ``name``, ``host``, ``port``, ``supervisor`` (its process; None where it does not run), ``since``, ``server``
        (its process), ``doing``, ``restarts``, ``health`` (what ``/health/ready`` says, with ``ready``), ``versions``.

    Raises:
        DeploymentError: There is no such deployment, or it is another user's.
    """
    history = History.read(deployment_folder(name))
    try:
        return ask(history.folder, {"command": "status"})
    except NotRunningError:
        return {
            "name": name,
            "host": history.host,
            "port": history.port,
            "supervisor": None,
            "since": None,
            "server": None,
            "doing": "",
            "restarts": 0,
            "health": {},
            "versions": [asdict(each) for each in history.versions],
        }


def roll_back(name: str, *, say: Say) -> str:
    """Go back to the version that served before the current one.

    Args:
        name: Of the deployment.
        say: Told what is being done.

    Returns:
        A sentence for the user.

    Raises:
        DeploymentError: There is none, it does not start, or the deployment does not run.
    """
    History.read(deployment_folder(name))
    done = ask(deployment_folder(name), {"command": "rollback"}, say)
    return f"Version {done['version']} of {name} serves again"


def stop(name: str) -> None:
    """Let a deployment finish what it has accepted, and wait until it has ended.

    Args:
        name: Of the deployment.

    Raises:
        DeploymentError: It does not run, or does not end.
    """
    folder = History.read(deployment_folder(name)).folder
    ask(folder, {"command": "stop"})
    until = time.monotonic() + _STOP_S
    while True:
        try:
            with alone(folder):
                return
        except (DeploymentError, ConfigurationError):
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
