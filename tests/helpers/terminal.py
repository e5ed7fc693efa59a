"""What a command shows on a terminal, and when: it runs under a pseudo-terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Silence:
    """A time in which nothing was shown."""

    seconds: float
    after: str
    """What the terminal had shown last."""


@dataclass
class Shown:
    """What a command has shown: pieces of its output with the seconds since its start."""

    exit_code: int
    seconds: float
    pieces: list[tuple[float, str]] = field(default_factory=list)
    out: str = ""
    """Its standard output, where that led elsewhere."""

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    @property
    def lines(self) -> list[str]:
        """Each state that a line of the terminal had, one after the other, without colours."""
        plain = _ESCAPES.sub("", self.text)
        return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]

    def screen(self) -> list[str]:
        """What stands on the terminal at the end."""
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", self.text):
            if part == "\r":
                column = 0
            elif part == "\n":
                row += 1
                column = 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif not part.startswith("\x1b"):
                line = rows[row].ljust(column)
                rows[row] = line[:column] + part + line[column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows]

    def silences(self, longer_than: float = 2.0) -> list[Silence]:
        """The times without any output, the longest first."""
        found, last, text = [], 0.0, "(the start)"
        for at, piece in [*self.pieces, (self.seconds, "")]:
            found.append(Silence(at - last, text))
            shown = [line for line in re.split(r"[\r\n]+", _ESCAPES.sub("", piece)) if line.strip()]
            last, text = at, shown[-1].strip() if shown else text
        return sorted((gap for gap in found if gap.seconds > longer_than), key=lambda gap: -gap.seconds)


def run_on_terminal(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    output_elsewhere: bool = False,
    until: str | None = None,
    timeout: float = 300,
    columns: int = 100,
) -> Shown:
    """Run a command whose streams are a terminal.

    Args:
        command: The program and its arguments.
        environment: Variables over those of this process.
        output_elsewhere: Its standard output is a pipe, as with ``| jq``.
        until: Once this has been shown, the command is stopped by SIGINT.
        timeout: Seconds until it is killed.
        columns: The terminal's width.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    began = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=subprocess.PIPE if output_elsewhere else theirs,
        stderr=theirs,
        env={
            **{name: value for name, value in os.environ.items() if name != "COLUMNS"},
            "TERM": "xterm-256color",
            **(environment or {}),
        },
        start_new_session=True,
    )
    os.close(theirs)
    shown, out = Shown(0, 0.0), b""
    sources = [ours, *([process.stdout] if process.stdout is not None else [])]
    stopping = False
    while ours in sources:
        ready, _, _ = select.select(sources, [], [], 1.0)
        if time.monotonic() - began > timeout:
            process.kill()
            break
        if process.stdout in ready:
            piece = os.read(process.stdout.fileno(), 65536)
            out += piece
            if not piece:
                sources.remove(process.stdout)
        if ours in ready:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux' way of saying that nobody has the other end open any more
                piece = b""
            if not piece:
                break
            shown.pieces.append((time.monotonic() - began, piece.decode(errors="replace")))
            if until is not None and not stopping and until in shown.text:
                stopping = True
                process.send_signal(signal.SIGINT)
    if process.stdout is not None:
        out += process.stdout.read()
        process.stdout.close()
    shown.exit_code = process.wait()
    shown.seconds, shown.out = time.monotonic() - began, out.decode(errors="replace")
    os.close(ours)
    return shown
