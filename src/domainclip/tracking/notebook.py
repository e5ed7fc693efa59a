"""What a user sees of a training in a notebook: one display below the cell, which is drawn over again."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from rich.console import Console

from domainclip.events import (
    Event,
    InitialValidated,
    Milestone,
    RunEnded,
    RunFinished,
    RunStarted,
    StepLogged,
    Validated,
    Warned,
)
from domainclip.pace import duration
from domainclip.tracking.phases import PhasesUnderWay, PhaseUnderWay
from domainclip.waiting import nothing_said

EVERY_SECONDS = 0.5
"""It is drawn no more often."""
_MOST_POINTS = 200
_LAST_REMARKS = 3
_WIDTH, _HEIGHT = 280, 72  # pixels of a curve

# Notebooks are light or dark by other means than the page's preference: the text's own colour is right in all of them.
_STYLE = """<style>
.domainclip-run { max-width: 42rem; font-size: 13px; line-height: 1.5; }
.domainclip-run p { margin: .2em 0; } .domainclip-run .soft { opacity: .75; }
.domainclip-run .bar { height: 8px; border-radius: 4px; border: 1px solid currentColor; overflow: hidden; }
.domainclip-run .bar i { display: block; height: 100%; background: currentColor; opacity: .65; }
.domainclip-run figure { display: inline-block; margin: .4em 1.2em .2em 0; }
.domainclip-run svg { display: block; overflow: visible; }
.domainclip-run figcaption { font-variant-numeric: tabular-nums; }
</style>"""


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook.

    Returns:
        False where IPython runs in a terminal, or not at all.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def usual_console() -> Console:
    """Where a run says what it does, if nobody has said otherwise.

    Returns:
        Standard error; in a notebook standard output, as text in one piece and not as a display for each line.
    """
    if in_notebook():
        return Console(force_jupyter=False, force_terminal=False)
    return Console(stderr=True)


@contextmanager
def notebook_display(wanted: bool = True) -> Iterator[list[NotebookListener]]:
    """A live display of the run that is made in the block, in place of lines in its log.

    Args:
        wanted: Whether nobody has said otherwise where the run is to be shown.

    Yields:
        The listener that the run needs; none outside of a notebook.
    """
    if not wanted or not in_notebook():
        yield []
        return
    listener = NotebookListener()
    with nothing_said():
        try:
            yield [listener]
        except BaseException as error:
            listener.close(type(error).__name__)
            raise
        listener.close("")


class NotebookListener:
    """A listener that shows phases, curves and figures of a run in a notebook, and in the end what remains of them."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html = HTML
        self._phases = PhasesUnderWay()
        self._began = time.monotonic()
        self._state, self._ended = "Preparing", False
        self._step = ""
        self._figures: dict[str, str] = {}
        self._losses, self._values = _Curve("loss"), _Curve("validation")
        self._remarks: list[str] = []
        self._handle: Any = display(HTML(self.content()), display_id=True)
        self._drawn = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Take an event, and draw where it is time to.

        Args:
            event: Any event.
        """
        self._phases(event)
        if isinstance(event, RunStarted):
            self._state = "Running"
        elif isinstance(event, StepLogged):
            self._step = f"step {event.step:,} of {event.total_steps:,}, epoch {event.epoch:.2f}"
            self._losses.add(event.step, event.metrics["loss"])
            speed = event.samples_per_second
            self._figures["speed"] = f"{speed:,.1f} images/s" if speed is not None else ""
            self._figures["memory"] = f"{event.peak_memory_mb:,.0f} MiB of memory at most"
        elif isinstance(event, InitialValidated):
            self._figures["initial"] = f"{event.primary} {event.value:.4f} before training"
        elif isinstance(event, Validated):
            self._values.name = f"validation {event.primary}"
            self._values.add(event.step, event.value)
            self._figures["best"] = f"best {event.top:.4f}"
        elif isinstance(event, Milestone):
            self._remark("⚠" if event.level != "info" else "✓", f"{event.text} {event.advice}")
        elif isinstance(event, Warned):
            self._remark("⚠", event.text)
        elif isinstance(event, RunFinished):
            stopped = ", stopped early" if event.stopped_early else ""
            self._step = f"{event.steps:,} steps, {event.epochs:.2f} epochs in {duration(event.training_time)}{stopped}"
        elif isinstance(event, RunEnded):
            self._end(event.outcome.capitalize(), event.text)
        if time.monotonic() - self._drawn >= EVERY_SECONDS:
            self._draw()

    def close(self, error: str) -> None:
        """Draw what remains.

        Args:
            error: The name of what has ended the run; empty where it has finished.
        """
        if not self._ended:
            self._end(f"Ended by {error}" if error else "Finished", "")
        self._draw()

    def _end(self, state: str, text: str) -> None:
        self._state, self._ended = state, True
        if text:
            self._remark("✓" if state == "Finished" else "⚠", text)

    def _remark(self, sign: str, text: str) -> None:
        self._remarks = [*self._remarks, f"{sign} {text.strip()}"][-_LAST_REMARKS:]

    def _draw(self) -> None:
        self._handle.update(self._html(self.content()))
        self._drawn = time.monotonic()

    def content(self) -> str:
        """What is shown now.

        Returns:
            HTML that needs nothing else.
        """
        took = duration(time.monotonic() - self._began)
        head = " · ".join(part for part in (self._step, took) if part)
        lines = [f"<p><strong>{escape(self._state)}</strong> <span class=soft>{escape(head)}</span></p>"]
        if not self._ended:
            lines += [_phase(phase) for phase in self._phases]
        lines += [curve.svg() for curve in (self._losses, self._values) if len(curve.points) > 1]
        if figures := [text for text in self._figures.values() if text]:
            lines.append(f"<p class=soft>{escape(' · '.join(figures))}</p>")
        lines += [f"<p>{escape(remark)}</p>" for remark in self._remarks]
        return f"{_STYLE}<div class=domainclip-run>{''.join(lines)}</div>"


def _phase(phase: PhaseUnderWay) -> str:
    name, pace = escape(phase.name.replace("_", " ").capitalize()), phase.pace
    if pace is None:
        return f"<p>{name} <span class=soft>{duration(time.monotonic() - phase.began)}</span></p>"
    left = pace.seconds_left()
    rest = f", {duration(left)} left" if left is not None else ""
    width = 100 * min(1.0, pace.done / pace.total) if pace.total else 0.0
    said = f"{pace.done:,} of {pace.total:,}{rest}"
    return (
        f"<p>{name} <span class=soft>{said}</span></p>"
        f'<div class=bar role=progressbar aria-label="{name}" aria-valuenow="{width:.0f}">'
        f'<i style="width:{width:.1f}%"></i></div>'
    )


class _Curve:
    """A figure by step. Of many points every second one is forgotten, again and again; the newest stays."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.points: list[tuple[int, float]] = []

    def add(self, step: int, value: float) -> None:
        if value - value == 0:  # finite
            self.points.append((step, value))
        if len(self.points) > _MOST_POINTS:
            self.points = self.points[-1::-2][::-1]

    def svg(self) -> str:
        steps, values = [step for step, _ in self.points], [value for _, value in self.points]
        low, high, first, last = min(values), max(values), steps[0], steps[-1]
        drawn = " ".join(
            f"{_WIDTH * (step - first) / max(1, last - first):.1f},{_HEIGHT * (high - value) / ((high - low) or 1):.1f}"
            for step, value in self.points
        )
        said = escape(f"{self.name} {values[-1]:.4f}, between {low:.4f} and {high:.4f}")
        return (
            f'<figure><svg width="{_WIDTH}" height="{_HEIGHT}" role=img aria-label="{said}">'
            f'<rect width="100%" height="100%" fill="none" stroke="currentColor" opacity=".25"/>'
            f'<polyline points="{drawn}" fill="none" stroke="currentColor" stroke-width="1.5"/></svg>'
            f"<figcaption class=soft>{said}</figcaption></figure>"
        )
