"""What a check of the data found, for people (a text) and for programs (a dictionary)."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.text import Text

from domainclip.words import counted

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
MAX_EXAMPLES = 5
_INDENTED: dict[str, Any] = {
    "initial_indent": "  ",
    "subsequent_indent": "  ",
    "break_long_words": False,
    "break_on_hyphens": False,
}
_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}


@dataclass
class Finding:
    """One thing found: ``count`` of the images, rows, captions or classes that ``detail`` names.

    ``error``: training refuses such data; ``warning``: a run or its figures may be spoiled; ``info``: worth knowing.
    """

    name: str
    severity: Severity
    count: int
    examples: list[str]
    advice: str
    detail: str = ""

    def __post_init__(self) -> None:
        self.examples = self.examples[:MAX_EXAMPLES]


@dataclass
class DataCheckReport:
    """``rows`` and ``images`` count what was looked at (rows by split); ``findings`` are ordered by
    severity."""

    path: str
    rows: dict[str, int]
    images: int
    findings: list[Finding] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))

    @property
    def exit_code(self) -> int:
        """1 where any finding is an error, so that ``train`` would refuse the data, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def named(self, name: str) -> list[Finding]:
        """Choose the findings of one name.

        Args:
            name: Such as ``broken-images``.

        Returns:
            Those, in order; there may be none.
        """
        return [finding for finding in self.findings if finding.name == name]

    def to_dict(self) -> dict[str, Any]:
        """The report for programs.

        Returns:
            Plain values only, ready for JSON.
        """
        return {
            "path": self.path,
            "exit_code": self.exit_code,
            "rows": dict(self.rows),
            "images": self.images,
            "findings": [asdict(finding) for finding in self.findings],
        }

    def render(self, width: int = 80) -> Text:
        """The report for people.

        Args:
            width: Columns for sentences; names of files are never cut, and go beyond them.

        Returns:
            What to print with ``rich`` and ``soft_wrap=True``.
        """
        parts = ", ".join(f"{name} {count:,}" for name, count in self.rows.items()) or "none"
        counts = {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES}
        # Text, not markup: captions and paths may hold square brackets.
        text = Text(f"{self.path}: rows {parts}; {counted(self.images, 'image')}\n")
        for finding in self.findings:
            text.append(f"\n{finding.severity}", style=_STYLES[finding.severity])
            text.append(f"  {finding.name} ({finding.count:,})\n", style="bold")
            if finding.detail:
                text.append(textwrap.fill(finding.detail, width, **_INDENTED) + "\n")
            for example in finding.examples:
                text.append(f"    · {example}\n")
            text.append(textwrap.fill(f"→ {finding.advice}", width, **_INDENTED | {"subsequent_indent": "    "}) + "\n")
        total = ", ".join(counted(count, severity) for severity, count in counts.items())
        return text.append(f"\n{total}")
