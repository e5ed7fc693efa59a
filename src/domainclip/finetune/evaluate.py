"""What ``domainclip evaluate`` does: one model, one data set, the figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import PairList
from domainclip.data.splits import load_splits
from domainclip.embedding import EmbeddingEngine
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.evaluation.metric_names import ALIASES
from domainclip.evaluation.report import jsonable
from domainclip.finetune.controller import CLIPFinetuningController
from domainclip.finetune.run import quarantined_rows, readable_pairs, splits_of


@dataclass
class EvaluationReport:
    model: str
    data: str
    split: str
    result: EvaluationResult
    set_aside: list[dict] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return jsonable(
            {
                "model": self.model,
                "data": self.data,
                "split": self.split,
                "metrics": self.result.metrics,
                "details": self.result.details,
                "set_aside": self.set_aside,
            }
        )

    def print(self, console: Console | None = None) -> None:
        console = console or Console()
        table = Table(title=escape(f"{self.model} on {self.data}, split {self.split}"))
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in self.result.metrics.items():
            if name in ALIASES:
                continue
            table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
        console.print(table)
        for row in self.set_aside[:5]:
            console.print(f"Set aside: {row['reason']}", markup=False)
        if len(self.set_aside) > 5:
            console.print(f"… and {len(self.set_aside) - 5} more")


def rows_of_split(config: CLIPFinetuningConfig, split: str) -> tuple[PairList, list[dict]]:
    """The rows of ``train``, ``val``, ``test`` or ``all``, cut as a training run would cut them, and those set aside.

    Raises ``ConfigurationError`` for an unknown split, ``DataError`` for one without rows.
    """
    names = ("train", "val", "test", "all")
    if split not in names:
        raise ConfigurationError(f"Invalid split {split!r}: choose one of {', '.join(names)}")
    splits = load_splits(config.data_path, **splits_of(config))
    chosen = {"train": splits.train, "val": splits.val, "test": splits.test}
    parts = chosen if split == "all" else {split: chosen[split]}
    rows = PairList([pair for part in parts.values() for pair in part])
    if not rows:
        raise DataError(f"No valid image-text pairs in the {split} split of {config.data_path}")
    return rows, quarantined_rows(parts)


def readable_rows(
    rows: PairList, engine: EmbeddingEngine, config: CLIPFinetuningConfig, split: str, set_aside: list[dict]
) -> PairList:
    """The rows whose pictures decode; the others are added to ``set_aside``. Raises ``DataError`` when none does."""
    kept = readable_pairs(rows, engine, split, config.strict, set_aside)
    if not kept:
        raise DataError(f"No picture of the {split} split of {config.data_path} can be read: {set_aside[-1]['reason']}")
    return kept


def run_evaluation(config: CLIPFinetuningConfig, split: str = "test") -> EvaluationReport:
    """Evaluate ``config.model_name`` on a split of ``config.data_path``, cut as a training run would cut it.

    Raises ``ConfigurationError`` for an unknown split, ``DataError`` for one without rows.
    """
    rows, set_aside = rows_of_split(config, split)
    controller = CLIPFinetuningController(config)
    controller.setup()
    engine = controller.engine()
    rows = readable_rows(rows, engine, config, split, set_aside)
    return EvaluationReport(config.model_name, config.data_path, split, controller.evaluate(rows, engine), set_aside)
