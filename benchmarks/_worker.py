"""A measured piece of work in a process of its own, driven over pipes one command at a time.

Two ways of doing a thing are compared by taking turns: one worker works while the others wait, so that both see
the same machine. Each has its own process because number formats, thread counts and allocator settings belong to
a process, and because peak memory can only be told apart that way.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from _record import RESULTS

Handler = Callable[..., dict[str, Any]]


class Worker:
    """Starts ``python SCRIPT --worker SPEC`` and talks JSON lines with it.

    Starting does not wait, so that several get ready at once. Raises ``RuntimeError`` with the worker's own error
    output when it dies.
    """

    def __init__(self, script: Path, spec: dict[str, Any]) -> None:
        self.name = str(spec.get("name", script.stem))
        self._errors = tempfile.TemporaryFile(mode="w+b")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--worker", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._facts: dict[str, Any] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the worker said when it was ready; waits for that."""
        if self._facts is None:
            self._facts = self._answer()
        return self._facts

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        _ = self.facts
        self._process.stdin.write(json.dumps({"command": command, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read().decode(errors="replace")[-4000:]
            raise RuntimeError(f"the worker {self.name} ended with code {self._process.returncode}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # the end of its input is the worker's signal to stop
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()


@contextmanager
def _answers() -> Iterator[Callable[[dict[str, Any]], None]]:
    """The pipe to the parent, kept out of reach of libraries that print: their output goes to stderr instead."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as pipe:
        os.dup2(2, 1)

        def answer(content: dict[str, Any]) -> None:
            pipe.write(json.dumps(content) + "\n")
            pipe.flush()

        yield answer


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Handler]]], spec: str) -> None:
    """The worker's side: ``prepare`` gives the facts to report and a handler per command; ends with its input."""
    with _answers() as answer:
        facts, handlers = prepare(json.loads(spec))
        answer(facts)
        for line in sys.stdin:
            request = json.loads(line)
            answer(handlers[request.pop("command")](**request))


def measurement_parser(doc: str | None, quick: str) -> argparse.ArgumentParser:
    """With the options that every measurement in workers has; ``quick``: what that one makes smaller."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="OMP_NUM_THREADS of the measured processes")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the JSON record")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def parse_or_serve(
    parser: argparse.ArgumentParser, prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Handler]]]
) -> argparse.Namespace | None:
    """What was asked for; None in a worker process, which has done its work then."""
    arguments = parser.parse_args()
    if arguments.worker:
        serve(prepare, arguments.worker)
        return None
    if arguments.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the workers
    return arguments
