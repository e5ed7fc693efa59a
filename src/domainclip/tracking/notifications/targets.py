"""Where messages go: the desktop, a program, or one of the services that apprise knows."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from domainclip.errors import CLIPFinetuningError, ConfigurationError, MissingExtraError
from domainclip.tracking.notifications.message import Digest

log = logging.getLogger(__name__)

SECONDS = 30.0
"""A program may take so long."""
KINDS = "desktop, command:PROGRAM, env:NAME or file:PATH (a variable or a file that holds an apprise URL)"


class NotSent(CLIPFinetuningError):
    """A message has not been accepted. It is tried again."""


class Target(Protocol):
    """Somewhere to send messages.

    Attributes:
        name: As it is called in ``notify``; it holds no secret.
    """

    name: str

    def send(self, digest: Digest) -> None:
        """Send messages; they count as told once this returns.

        Args:
            digest: The messages.

        Raises:
            NotSent: They were not accepted.
        """


def targets_of(names: Sequence[str]) -> list[Target]:
    """The targets of the key ``notify``, looked at before any work.

    Args:
        names: See ``KINDS``.

    Returns:
        The targets.

    Raises:
        ConfigurationError: One is of no kind that is known, or what it needs is not there.
        MissingExtraError: It needs apprise, which is not installed.
    """
    return [_target(name.strip()) for name in dict.fromkeys(names)]


def _target(name: str) -> Target:
    kind, _, rest = name.partition(":")
    if name == "desktop":
        return Desktop()
    if kind == "command" and rest.strip():
        return Command(name, rest)
    if kind == "env" and rest:
        if not (url := os.environ.get(rest, "").strip()):
            raise ConfigurationError(f"notify={name}: the environment variable {rest} is not set, or empty")
        return Service(name, url)
    if kind == "file" and rest:
        return Service(name, _url_in(name, Path(rest).expanduser()))
    if "://" in name:  # it may hold a password: it is not repeated
        raise ConfigurationError(
            f"notify has a URL of {kind}://. URLs of services hold secrets, and the recipe is saved with the run: put "
            "it into an environment variable or a file, and give env:NAME or file:PATH"
        )
    raise ConfigurationError(f"notify={name} is no place to send messages to: give {KINDS}")


def _url_in(name: str, path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8").split()
        readable = path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"notify={name} cannot be read: {error}") from error
    if len(lines) != 1:
        raise ConfigurationError(f"notify={name}: the file has {len(lines)} words, where one URL has to stand")
    if readable and os.name != "nt":
        log.warning("Others on this machine can read %s, which holds a secret: chmod 600 it", path)
    return lines[0]


class Desktop:
    """A notification on the desktop, by ``osascript`` on a Mac and ``notify-send`` elsewhere.

    Raises:
        ConfigurationError: The program is not there.
    """

    name = "desktop"

    def __init__(self) -> None:
        self.program = "osascript" if sys.platform == "darwin" else "notify-send"
        if shutil.which(self.program) is None:
            package = "" if sys.platform == "darwin" else " (Debian's libnotify-bin)"
            raise ConfigurationError(f"notify=desktop needs {self.program}{package}, which is not installed")

    def send(self, digest: Digest) -> None:
        """See ``Target.send``."""
        if self.program == "osascript":
            # The texts are arguments of the script and never part of its source.
            script = "on run {title, body}\ndisplay notification body with title title\nend run"
            _run([self.program, "-e", script, digest.title, digest.body])
        else:
            urgency = "critical" if digest.level == "error" else "normal"
            _run([self.program, "--app-name=domainclip", f"--urgency={urgency}", "--", digest.title, digest.body])


class Command:
    """A program that gets the messages as one JSON object on its standard input.

    Args:
        name: As it is called in ``notify``.
        line: Program and arguments, quoted as in a shell; no shell sees it.

    Raises:
        ConfigurationError: There is no such program.
    """

    def __init__(self, name: str, line: str) -> None:
        self.name = name
        try:
            self.words = shlex.split(line)
        except ValueError as error:
            raise ConfigurationError(f"notify={name} cannot be read: {error}") from error
        self.words[0] = os.path.expanduser(self.words[0])
        if shutil.which(self.words[0]) is None:
            raise ConfigurationError(f"notify={name}: there is no program {self.words[0]}")

    def send(self, digest: Digest) -> None:
        """See ``Target.send``."""
        content = {
            "run": digest.run,
            "level": digest.level,
            "title": digest.title,
            "body": digest.body,
            "messages": [asdict(each) for each in digest.messages],
        }
        _run(self.words, json.dumps(content))


class Service:
    """One of the services that apprise sends to: mail, Slack, Telegram, ntfy and a hundred more.

    Args:
        name: As it is called in ``notify``.
        url: Of the service, with its secrets.

    Raises:
        ConfigurationError: apprise cannot read the URL.
        MissingExtraError: apprise is not installed.
    """

    def __init__(self, name: str, url: str) -> None:
        if find_spec("apprise") is None:
            raise MissingExtraError("apprise", "notify", f"notify={name}")
        import apprise

        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it logs URLs
        self.name = name
        self._service = apprise.Apprise()
        if not self._service.add(url):
            raise ConfigurationError(
                f"notify={name}: what stands there is no URL that apprise knows, such as "
                "mailtos://NAME:PASSWORD@gmail.com or ntfy://TOPIC (https://github.com/caronc/apprise)"
            )

    def send(self, digest: Digest) -> None:
        """See ``Target.send``."""
        from apprise import NotifyFormat, NotifyType

        kind = {"info": NotifyType.INFO, "warning": NotifyType.WARNING, "error": NotifyType.FAILURE}[digest.level]
        try:
            sent = self._service.notify(
                body=digest.body, title=digest.title, notify_type=kind, body_format=NotifyFormat.TEXT
            )
        except Exception as error:  # its text may hold the URL
            raise NotSent(f"the service failed ({type(error).__name__})") from None
        if not sent:
            raise NotSent("the service did not accept it, or could not be reached")


def _run(words: Sequence[str], text: str | None = None) -> None:
    try:
        done = subprocess.run(words, input=text, text=True, capture_output=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotSent(f"{words[0]} failed ({type(error).__name__})") from error
    if done.returncode:
        raise NotSent(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()[:200]}")
