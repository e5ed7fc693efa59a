"""Weights & Biases: online where this machine is logged in, otherwise in files that ``wandb sync`` sends later."""

from __future__ import annotations

import json
import netrc
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from domainclip.tracking.exporters.exporter import (
    EXPORTERS,
    Exporter,
    Figures,
    Result,
    RunFacts,
    require,
    without_password,
)

PROJECT = "domainclip"
"""Where ``WANDB_PROJECT`` says nothing."""
FLUSH_SECONDS = 1.0
"""What is older is in the file: the rest is sent again after a kill."""
FINISH_SECONDS = 60.0
"""An upload at the end is given up after that; the files stay for ``wandb sync``."""


@EXPORTERS.register("wandb")
class WandbExporter(Exporter):
    """Figures by the names of ``metrics.jsonl`` over an axis ``step``, the recipe as configuration, milestones and the
    verdict in the summary.

    Each row of the run's files is a row of the history: W&B's own counter of steps would refuse one that comes late.
    Offline, each start of a run makes a folder of its own, with the same run id.

    Raises:
        MissingExtraError: The package ``wandb`` is not installed.
    """

    keeps_at_once = False  # another process writes, a moment later

    def __init__(self) -> None:
        self._wandb = require("wandb", "wandb")
        base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        self._mode = os.environ.get("WANDB_MODE") or ("online" if _is_logged_in(base) else "offline")
        self._project = os.environ.get("WANDB_PROJECT", PROJECT)
        where = (
            f"{without_password(base)}/{os.environ.get('WANDB_ENTITY', '')}" if self._mode == "online" else "offline"
        )
        self.destination = f"{where} {self._project}"
        self._run: Any = None

    def start(self, run: RunFacts) -> None:
        """Begin the run, or go on with it.

        Args:
            run: Its recipe becomes the configuration.
        """
        if self._run is not None:
            self._run.finish(exit_code=1)
        self._folder = Path(os.environ.get("WANDB_DIR") or run.folder)
        self._id = run.id
        settings = self._wandb.Settings(
            silent=True, console="off", x_transaction_log_flush_interval=FLUSH_SECONDS, finish_timeout=FINISH_SECONDS
        )
        self._run = self._wandb.init(
            project=self._project,
            id=run.id,
            name=run.name,
            config=dict(run.recipe),
            dir=str(self._folder),
            mode=self._mode,
            resume="allow" if self._mode == "online" else None,
            reinit="create_new",
            settings=settings,
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        """Read the files of offline runs, or ask the server.

        Args:
            rows: Those in doubt.

        Returns:
            Step and name of what is there.
        """
        if self._mode == "online":
            history: Iterator[dict[str, Any]] = self._wandb.Api().run(self._run.path).scan_history()
        else:
            history = (row for path in self._files() for row in read_history(path))
        return {(int(row["step"]), name) for row in history if row.get("step") is not None for name in row}

    def _files(self) -> list[Path]:
        return sorted((self._folder / "wandb").glob(f"offline-run-*-{self._id}/run-{self._id}.wandb"))

    def log(self, rows: Sequence[Figures]) -> None:
        """Hand figures to W&B.

        Args:
            rows: Those.
        """
        for row in rows:
            self._run.log({"step": row.step, **row.values}, commit=True)
            for name, text in row.texts.items():
                self._run.summary[f"{name}_text"] = text

    def finish(self, result: Result) -> None:
        """End the run.

        Args:
            result: Of the run.
        """
        self._run.summary["verdict"] = result.verdict
        self._run.summary["ended"] = f"{result.outcome}. {result.text}"
        self._run.finish(exit_code=0 if result.outcome == "finished" else 1)
        self._run = None


def _is_logged_in(base: str) -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(base).hostname or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """Read the history from a ``.wandb`` file: a header of 7 bytes, then records in the log format of LevelDB
    (https://github.com/google/leveldb/blob/main/doc/log_format.md), each a protobuf.

    Args:
        path: The file; where a kill has cut it short, it ends there.

    Yields:
        Figures by name of each row.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for data in _records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}


def _records(content: bytes) -> Iterator[bytes]:
    block, head, at, parts = 32768, 7, 7, b""
    while at + head <= len(content):
        if block - at % block < head:  # the rest of a block is too short for a record
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        piece = content[at + head : at + head + length]
        if kind not in (1, 2, 3, 4) or len(piece) < length:  # whole, first, middle, last
            return
        parts = piece if kind in (1, 2) else parts + piece
        if kind in (1, 4):
            yield parts
        at += head + length
