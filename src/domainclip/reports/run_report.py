"""What a run's report says, and the table that ends it on the terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from domainclip.data.splits import DataSplits
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.inference import ModelSession
from domainclip.metrics.metric import METRICS


def report_content(
    session: ModelSession,
    splits: DataSplits,
    evaluated_split: str,
    before: EvaluationResult | None,
    after: EvaluationResult | None,
    result: dict[str, Any],
    skipped: list[dict],
    folder: Path,
    history: list[dict[str, Any]],
    started: float,
) -> dict[str, Any]:
    recipe = session.config
    warnings = list(result["warnings"])
    if evaluated_split == "val":
        warnings.append(
            "There is no test split: before and after are of the validation split that chose the checkpoint"
        )
    if skipped:
        warnings.append(f"{len(skipped)} images or rows were skipped (skipped.json), first: {skipped[0]['reason']}")
    best = result["best"]
    fixed = session.processor.text_padding == "fixed"
    name = (
        recipe.model_name if not recipe.vision_model_name else f"{recipe.vision_model_name} + {recipe.text_model_name}"
    )
    return {
        "before": before,
        "after": after,
        "evaluated_on": evaluated_split,
        "validation": best["all"] if best else {},
        "training": {
            "train_loss": result["train_loss"],
            "final_loss": result["final_loss"],
            "steps": result["steps"],
            "epochs": result["epochs"],
            "training_time_s": result["training_time"],
            "run_time_s": time.monotonic() - started,
            "samples_per_s": result["samples_per_second"],
            **_memory_figures(result),
            "best_step": best["step"] if best else None,
            "stopped_early": result["stopped_early"],
            "resumed_from": result["resumed_from"],
        },
        "history": history,
        "data": {
            "counts": {"train": len(splits.train), "validation": len(splits.val), "test": len(splits.test)},
            "notes": splits.notes,
        },
        "device": f"{session.device_manager.name}, {session.precision.name}",
        "domain": session.domain.name,
        "base_model": name,
        "checkpoint": str(folder / "model"),
        "text_padding": "max_length" if fixed else None,
        "own_code": session.encoder.has_own_code,
        "seed": recipe.seed,  # so that the intervals are those of a comparison with this recipe
        "warnings": warnings,
        "next": [f"domainclip evaluate --model {folder / 'model'} --data YOUR_DATA"],
    }


def _memory_figures(result: dict[str, Any]) -> dict[str, Any]:
    memory = result["memory"]
    figures = {"peak_memory_mb": memory["measured_peak_mb"]}
    if "predicted_mb" in memory:
        figures["predicted_memory_mb"] = memory["predicted_mb"]
        figures["micro_batch"] = memory["micro_batch_at_the_end"] or memory["batch"]
    return figures


def before_after_table(report: dict[str, Any], evaluated_split: str) -> Table:
    table = Table(title=f"Before and after, {evaluated_split} split")
    for column, justify in (("metric", "left"), ("before", "right"), ("after", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    shown = ("acc1", "acc5", "mean_per_class_recall", "i2t_R@1", "t2i_R@1", "i2t_MRR", "t2i_MRR")
    for name in (*shown, *(name for name in report["after"] if METRICS[name].section == "domain")):
        if report["after"].get(name) is not None:
            before = report["before"].get(name)
            table.add_row(name, "" if before is None else f"{before:.3f}", f"{report['after'][name]:.3f}")
    return table
