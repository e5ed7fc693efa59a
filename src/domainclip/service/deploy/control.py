"""How a supervisor is spoken to: one JSON object a line, over a socket that only the owner of the deployment may open.

A request is answered by lines that say what is being done, and by a last one with a result or an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from domainclip.errors import CLIPFinetuningError
from domainclip.service.deploy.state import CONTROL, LOG, DeploymentError

Say = Callable[[str], None]
Answer = Callable[[dict[str, Any], Say], Awaitable[dict[str, Any]]]
"""Takes a request and what to say meanwhile; returns the result, or raises."""

_CONNECT_S = 10.0
_LONGEST_REQUEST = 2**20  # bytes


class NotRunningError(DeploymentError):
    """Nothing supervises the deployment, at present or any more."""


def ask(folder: Path, request: dict[str, Any], say: Say = lambda text: None) -> dict[str, Any]:
    """Ask the supervisor of a deployment, and wait until it has done it.

    Args:
        folder: Of the deployment.
        request: With its ``command``.
        say: Told what is being done.

    Returns:
        The result.

    Raises:
        NotRunningError: There is no supervisor, or it ended before it had answered.
        DeploymentError: It has not done it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_CONNECT_S)
        try:
            connection.connect(str(folder / CONTROL))
            connection.sendall(json.dumps(request).encode() + b"\n")
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotRunningError(
                f"The deployment {folder.name} is not running: deploy a model to it, or start its last version with: "
                f"domainclip deploy run --name {folder.name}"
            ) from None
        except OSError as error:
            raise DeploymentError(
                f"The supervisor of {folder.name} cannot be asked ({folder / CONTROL}): {error.strerror or error}"
            ) from None
        connection.settimeout(None)
        with connection.makefile("rb") as lines, contextlib.suppress(ConnectionError):
            for line in lines:
                message = json.loads(line)
                if "error" in message:
                    raise DeploymentError(message["error"])
                if "result" in message:
                    result: dict[str, Any] = message["result"]
                    return result
                say(message["say"])
    raise NotRunningError(
        f"The supervisor of {folder.name} ended before it had answered; {folder / LOG} or the journal may say why"
    )


async def listen(folder: Path, answer: Answer) -> asyncio.Server:
    """Take requests.

    Args:
        folder: Of the deployment, which nobody else supervises.
        answer: Does what is asked.

    Returns:
        What listens until it is closed.

    Raises:
        OSError: The socket cannot be made.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def send(message: dict[str, Any]) -> None:
            writer.write(json.dumps(message).encode() + b"\n")  # to a client that has gone, nothing

        with contextlib.suppress(ConnectionError, ValueError):  # of a request that is none, or too long
            request = json.loads(await reader.readline())
            try:
                send({"result": await answer(request, lambda text: send({"say": text}))})
            except CLIPFinetuningError as error:
                send({"error": str(error)})
            except asyncio.CancelledError:
                send({"error": "The supervisor is being stopped"})
            except OSError as error:
                send({"error": f"The supervisor could not do it: {error}"})
            await writer.drain()
        writer.close()

    path = folder / CONTROL
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(serve, path, limit=_LONGEST_REQUEST)
    path.chmod(0o600)
    return server
