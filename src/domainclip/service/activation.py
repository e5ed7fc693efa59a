"""What a server and the process that started it say to each other: systemd's protocols of socket activation
(sd_listen_fds(3)) and notification (sd_notify(3)), and a pipe that ends with the parent.

The supervisor of a deployment speaks them to its servers as systemd does to it, so that neither needs to know which of
the two is at the other end. The standard library alone: a supervisor must be small.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from domainclip.errors import ConfigurationError

FIRST_DESCRIPTOR = 3
"""Where the sockets that are handed over begin (SD_LISTEN_FDS_START)."""
PARENT_VARIABLE = "DOMAINCLIP_PARENT_FD"
"""Names the descriptor of a pipe that is at its end when the parent is no more."""

_BACKLOG = 4096  # connections that wait while no server accepts; the system cuts it to its own limit
# LISTEN_PID can be known in the new process alone, and code between fork and exec is not safe in Python.
_HAND_OVER = """\
import os, sys
given = int(sys.argv[1])
if given != 3:
    os.dup2(given, 3)
    os.close(given)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execvp(sys.argv[2], sys.argv[2:])
"""


def listening_socket(host: str, port: int, patience_s: float = 0.0) -> socket.socket:
    """Listen at an address. Connections wait in its queue until a process accepts them.

    Args:
        host: A name or an address; ``0.0.0.0`` and ``::`` are all of this machine.
        port: The port; 0 leaves it to the system.
        patience_s: So long to wait for a port that is in use, in seconds.

    Returns:
        The socket.

    Raises:
        ConfigurationError: The address is not this machine's, or the port is in use or not allowed.
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            return socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except socket.gaierror as error:
            raise ConfigurationError(f"The host {host!r} is not known: {error.strerror}") from None
        except (OSError, OverflowError) as error:
            in_use = getattr(error, "errno", None) == errno.EADDRINUSE
            if in_use and time.monotonic() < until:
                time.sleep(0.05)
                continue
            what = "another program listens there" if in_use else getattr(error, "strerror", None) or error
            raise ConfigurationError(f"Port {port} of {host} cannot be used: {what}. Give another --port") from None


def handing_over(listening: socket.socket, command: Sequence[str]) -> list[str]:
    """A command that runs another one with a listening socket handed over; ``inherited_socket`` takes it.

    Args:
        listening: The socket; its descriptor must be passed on to the process (``pass_fds``).
        command: What to run.

    Returns:
        The command to run instead.
    """
    return [sys.executable, "-I", "-S", "-c", _HAND_OVER, str(listening.fileno()), *command]


def inherited_socket() -> socket.socket | None:
    """The listening socket that this process was handed over. A second call gets nothing, nor do its child processes.

    Returns:
        The socket; None where none was meant for this process.

    Raises:
        ConfigurationError: There are several, or it is no listening stream socket.
    """
    meant_for, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if meant_for != str(os.getpid()):
        return None
    if count != "1":
        raise ConfigurationError(f"{count or 'No'} sockets were handed over (LISTEN_FDS): exactly one is served")
    try:
        found = socket.socket(fileno=FIRST_DESCRIPTOR)
        listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigurationError(f"What was handed over (LISTEN_FDS) is no socket: {error.strerror}") from None
    if found.type != socket.SOCK_STREAM or not listens:
        raise ConfigurationError("The socket that was handed over (LISTEN_FDS) does not listen for connections")
    found.set_inheritable(False)
    return found


def notify(state: str) -> None:
    """Tell the process that started this one how it is, if it wants to know.

    Args:
        state: Assignments, one a line: ``READY=1``, ``STOPPING=1``, ``STATUS=loading the model``.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:  # it may be gone
        sender.setblocking(False)
        sender.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        sender.send(state.encode())


def follow_parent() -> None:
    """End with the process that started this one, as by SIGTERM, if it has asked for that: nobody else would ever stop
    this one, nor free its port. To be called at the start, so that a server that is still loading its model ends, too.
    """
    given = os.environ.pop(PARENT_VARIABLE, "")
    if not given.isdecimal():
        return
    pipe = int(given)
    try:
        os.set_inheritable(pipe, False)
    except OSError:
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(pipe, 1)  # nothing is ever written: it returns at the end
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
