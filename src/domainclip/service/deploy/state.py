"""What is kept of a deployment: its address, the versions it has had, and how each of them ended."""

from __future__ import annotations

import os
import pwd
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Self, get_args

from domainclip.errors import CLIPFinetuningError, DamagedFileError
from domainclip.files import read_record, write_record

Outcome = Literal["starting", "watched", "in use", "replaced", "failed", "rolled back"]
"""``watched`` takes the requests and is still being watched; ``failed`` has never taken one."""

CURRENT: tuple[Outcome, ...] = ("watched", "in use")
"""The outcomes of a version that takes the requests: one version has one of them, or none."""
CONTROL, LOG = "control", "log"
"""In the folder of a deployment: the socket by which its supervisor is spoken to, and what it and its servers say."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
_RECORD = "deployment.json"
_KEPT = 50  # versions in the history
_LONGEST_ADDRESS = 103  # bytes of a Unix socket's path: sun_path has 104 on macOS and 108 on Linux, with a NUL
_LONGEST_FILE = "notify-999999"


class DeploymentError(CLIPFinetuningError, RuntimeError):
    """A deployment is not there, cannot be spoken to, or has not done what it was asked."""


@dataclass(frozen=True)
class Version:
    """A model as it is, or was, served.

    Attributes:
        number: Of the version, from 1.
        model: Its folder or name, for the reader.
        command: Starts its server.
        folder: Where the command runs.
        deployed: When, in seconds since 1970.
        fingerprint: Of the model, as its server says it; empty until then.
        outcome: What became of it.
        reason: Why it is ``failed`` or ``rolled back``.
    """

    number: int
    model: str
    command: tuple[str, ...]
    folder: str
    deployed: float = field(default_factory=time.time)
    fingerprint: str = ""
    outcome: Outcome = "starting"
    reason: str = ""


@dataclass
class History:
    """The address of a deployment and its versions, as they are on the disk: each change is written at once.

    Attributes:
        folder: Where it is kept.
        host: The address that is listened at.
        port: As asked for; 0 leaves it to the system.
        versions: From the first to the latest; of very many, the latest.
    """

    folder: Path
    host: str
    port: int
    versions: list[Version] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the history.

        Args:
            folder: Of the deployment.

        Returns:
            What was written.

        Raises:
            DeploymentError: There is no deployment.
            DamagedFileError: It is not what was written.
        """
        path = folder / _RECORD
        if not path.exists():
            raise DeploymentError(
                f"There is no deployment named {folder.name} ({path} is not there). "
                "Deploy a model first: domainclip deploy MODEL --to local"
            )
        found = read_record(path)
        try:
            versions = [Version(**{**each, "command": tuple(each["command"])}) for each in found["versions"]]
            if all(each.outcome in get_args(Outcome) for each in versions):
                return cls(folder, str(found["host"]), int(found["port"]), versions)
        except (KeyError, TypeError, ValueError):
            pass
        raise DamagedFileError(f"{path} was written by another version of domainclip: delete it, and deploy again")

    def write(self) -> None:
        """Write the history, whole or not at all.

        Raises:
            OSError: It cannot be written.
        """
        versions = [asdict(each) for each in self.versions]
        write_record(self.folder / _RECORD, {"host": self.host, "port": self.port, "versions": versions})

    @property
    def current(self) -> Version | None:
        """The version that takes the requests."""
        return next((each for each in reversed(self.versions) if each.outcome in CURRENT), None)

    @property
    def previous(self) -> Version | None:
        """The version that a roll-back leads to: the latest that was in use before the current one."""
        return next((each for each in reversed(self.versions) if each.outcome == "replaced"), None)

    def add(self, model: str, command: tuple[str, ...], folder: str) -> Version:
        """Note down a new version that is being started.

        Args:
            model: Its folder or name.
            command: Starts its server.
            folder: Where the command runs.

        Returns:
            The version.

        Raises:
            OSError: It cannot be written.
        """
        version = Version(self.versions[-1].number + 1 if self.versions else 1, model, command, folder)
        needed = (self.current, self.previous)
        earlier = [each for each in self.versions[:-_KEPT] if each in needed]
        self.versions = [*earlier, *self.versions[-_KEPT:], version]
        self.write()
        return version

    def mark(self, outcomes: Mapping[int, Outcome], *, reason: str = "") -> None:
        """Note down what has become of versions, of all of them in one write.

        Args:
            outcomes: By the number of the version.
            reason: Of those that are ``failed`` or ``rolled back``.

        Raises:
            OSError: It cannot be written.
        """
        self.versions = [
            each
            if each.number not in outcomes
            else replace(
                each,
                outcome=outcomes[each.number],
                reason=reason if outcomes[each.number] in ("failed", "rolled back") else "",
            )
            for each in self.versions
        ]
        self.write()

    def identify(self, number: int, fingerprint: str) -> None:
        """Note down which model a version is.

        Args:
            number: Of the version.
            fingerprint: As its server says it.

        Raises:
            OSError: It cannot be written.
        """
        self.versions = [
            replace(each, fingerprint=fingerprint) if each.number == number else each for each in self.versions
        ]
        self.write()


def state_root() -> Path:
    """Where the deployments of this user are kept.

    Returns:
        ``$DOMAINCLIP_STATE``, or ``/var/lib/domainclip`` for root, whose deployments are the system's, or
        ``domainclip`` in ``$XDG_STATE_HOME``, or ``~/.local/state/domainclip``. It need not be there yet.
    """
    if given := os.environ.get("DOMAINCLIP_STATE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/domainclip")
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "domainclip"


def deployment_folder(name: str, *, make: bool = False) -> Path:
    """The folder of a deployment, which nobody but its owner may look into.

    Args:
        name: Of the deployment: letters, digits, ``-`` and ``_``.
        make: Make it where it is missing.

    Returns:
        Its absolute path; without ``make`` it need not be there.

    Raises:
        DeploymentError: The name is none, the folder is another user's, or its path is too long for a socket.
        OSError: It cannot be made.
    """
    if not _NAME.fullmatch(name):
        raise DeploymentError(
            f"Invalid name {name!r} of a deployment: take at most 40 letters, digits, - and _, such as parts-line-3"
        )
    folder = Path(os.path.abspath(state_root())) / name
    if len(os.fsencode(folder / _LONGEST_FILE)) > _LONGEST_ADDRESS:
        raise DeploymentError(
            f"The path {folder} is too long for the sockets of a deployment, whose paths have at most "
            f"{_LONGEST_ADDRESS} bytes: set DOMAINCLIP_STATE to a folder with a shorter path"
        )
    if make:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        found = folder.stat()
    except FileNotFoundError:
        return folder
    except PermissionError:
        raise DeploymentError(f"{folder} belongs to another user: {_ASK}") from None
    if os.geteuid() not in (0, found.st_uid):
        raise DeploymentError(f"The deployment {name} in {folder} is {_user(found.st_uid)}'s: {_ASK}")
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


_ASK = "ask them, or set DOMAINCLIP_STATE to a folder of your own"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"
