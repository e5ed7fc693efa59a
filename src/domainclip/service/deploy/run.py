"""Runs a deployment's supervisor: in this process, or in one of its own that stays when the terminal closes.

``python -m domainclip.service.deploy.run NAME`` is what ``domainclip deploy run --name NAME`` becomes.
"""

from __future__ import annotations

import asyncio
import logging
import logging.handlers
import os
import socket
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

from domainclip.errors import CLIPFinetuningError
from domainclip.pipelines.output_lock import locked_output
from domainclip.service.activation import handing_over, inherited_socket, listening_socket
from domainclip.service.deploy.control import NotRunningError, ask
from domainclip.service.deploy.state import LOG, DeploymentError, History, deployment_folder
from domainclip.service.deploy.supervisor import Supervisor

_LOG_BYTES, _LOG_FILES = 10 * 2**20, 3
_ERRORS = "errors"  # what a detached supervisor prints outside its log: why it has not started
_START_S = 60.0
PATIENCE_S = 10.0
"""Servers whose supervisor was killed let go of the port when they have heard of it, in seconds."""


def run_supervisor(name: str, *, log_file: bool = False) -> None:
    """Serve the current version of a deployment until SIGTERM, SIGINT or a request to stop.

    The listening socket is the one that was handed over by systemd's protocol, or one at the deployment's address.

    Args:
        name: Of the deployment.
        log_file: Log into its folder, at most 40 MiB, and not to the standard error.

    Raises:
        DeploymentError: There is no such deployment, it belongs to another user, or it runs already.
        ConfigurationError: Its address cannot be listened at.
    """
    folder = deployment_folder(name)
    history = History.read(folder)
    if folder.stat().st_uid != os.geteuid():
        raise DeploymentError(f"{folder} belongs to another user, who alone may run the deployment")
    log = logging.getLogger("domainclip.deploy")
    handler = (
        logging.handlers.RotatingFileHandler(folder / LOG, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES)
        if log_file
        else logging.StreamHandler()
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.propagate = False
    log.setLevel(logging.INFO)
    try:
        with alone(folder), inherited_socket() or _bound(history) as listening:
            history = History.read(folder)
            asyncio.run(Supervisor(history, listening, log.info).run())
    finally:
        log.removeHandler(handler)
        handler.close()


def _bound(history: History) -> socket.socket:
    return listening_socket(history.host, history.port, PATIENCE_S)


def alone(folder: Path) -> AbstractContextManager[None]:
    """Within it no other process supervises a deployment.

    Args:
        folder: Of the deployment.

    Returns:
        What holds the lock.

    Raises:
        DeploymentError: Another process supervises it.
        ConfigurationError: Another process is about to, or just ends.
    """
    try:
        answer = ask(folder, {"command": "status"})
    except NotRunningError:
        return locked_output(folder, f"The deployment {folder.name}", lambda text: None)
    raise DeploymentError(f"The deployment {folder.name} is already running, in process {answer['supervisor']}")


def supervisor_command(name: str, *, log_file: bool) -> list[str]:
    """What runs a supervisor in a process of its own, with the Python of this one.

    Args:
        name: Of the deployment.
        log_file: Log into its folder, and not to the standard error.

    Returns:
        The command.
    """
    return [sys.executable, "-m", "domainclip.service.deploy.run", name, *(["--log-file"] if log_file else [])]


def start_detached(name: str, host: str, port: int) -> None:
    """Start a supervisor in a process of its own, without a terminal, and wait until it can be asked.

    Args:
        name: Of the deployment, whose folder is made where it is missing.
        host: The address to listen at.
        port: The port; 0 leaves it to the system.

    Raises:
        DeploymentError: It has not started.
        ConfigurationError: The address cannot be listened at.
    """
    folder = deployment_folder(name, make=True)
    try:
        history, patience = History.read(folder), PATIENCE_S
    except DeploymentError:
        history, patience = History(folder, host, port), 0.0
    with listening_socket(host, port, patience) as listening:
        history.host, history.port = host, listening.getsockname()[1]
        history.write()
        with open(folder / _ERRORS, "wb") as errors:
            process = subprocess.Popen(
                handing_over(listening, supervisor_command(name, log_file=True)),
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(listening.fileno(),),
                start_new_session=True,
            )
        until = time.monotonic() + _START_S
        while process.poll() is None and time.monotonic() < until:
            try:
                ask(folder, {"command": "status"})
                return
            except NotRunningError:
                time.sleep(0.02)
    process.kill()
    why = (folder / _ERRORS).read_text(errors="replace").strip() or f"exit code {process.wait()}"
    raise DeploymentError(f"The supervisor of {name} has not started: {why}")


if __name__ == "__main__":
    try:
        run_supervisor(sys.argv[1], log_file=sys.argv[2:] == ["--log-file"])
    except CLIPFinetuningError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)
