"""What a command that ran in the test's own process left behind."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommandResult:
    exit_code: int
    out: str
    err: str
