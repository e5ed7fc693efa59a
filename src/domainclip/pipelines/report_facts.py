"""What a run knows when it is over, as its report takes it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domainclip.data.splits import DataSplits
from domainclip.inference import ModelSession
from domainclip.reports.schema import RunFacts
from domainclip.reports.schema.skipped import skipped_counts


def run_facts(
    session: ModelSession,
    splits: DataSplits,
    evaluated_split: str,
    result: Mapping[str, Any],
    skipped: Sequence[Mapping[str, str]],
    folder: Path,
    run_time_s: float,
    warnings: Sequence[str] = (),
    **parts: Any,
) -> RunFacts:
    """The facts of a finished run.

    Args:
        session: The trained model.
        splits: The data.
        evaluated_split: The split that the evaluations before and after are of.
        result: What ``fine_tune`` returned.
        skipped: Images and rows that could not be used.
        folder: The run's folder.
        run_time_s: Seconds of the whole run, over its resumptions.
        warnings: Sentences beside those of the training.
        **parts: More of the report's content, by its keys.

    Returns:
        The facts, typed.
    """
    recipe = session.config
    found = [*result["warnings"]]
    if evaluated_split == "val":
        found.append("There is no test split: before and after are of the validation split that chose the checkpoint")
    best = result["best"]
    fixed = session.processor.text_padding == "fixed"
    name = (
        recipe.model_name if not recipe.vision_model_name else f"{recipe.vision_model_name} + {recipe.text_model_name}"
    )
    return RunFacts.from_values(
        {
            "evaluated_on": evaluated_split,
            "validation": best["all"] if best else {},
            "training": {
                **{name: result[name] for name in ("train_loss", "final_loss", "steps", "epochs")},
                "training_time_s": result["training_time"],
                "run_time_s": run_time_s,
                "samples_per_s": result["samples_per_second"],
                **_memory_figures(result["memory"]),
                "best_step": best["step"] if best else None,
                "stopped_early": result["stopped_early"],
                "resumed_from": result["resumed_from"],
                **(result.get("energy") or {}),
            },
            "data": {
                "counts": {"train": len(splits.train), "validation": len(splits.val), "test": len(splits.test)},
                "notes": splits.notes,
                "skipped": skipped_counts(skipped),
            },
            "device": f"{session.device_manager.name}, {session.precision.name}",
            "domain": session.domain.name,
            "base_model": name,
            "checkpoint": str(folder / "model"),
            "text_padding": "max_length" if fixed else None,
            "own_code": session.encoder.has_own_code,
            "seed": recipe.seed,  # so that the intervals are those of a comparison with this recipe
            "choices": [outcome["said"] for key in ("probe_first", "probe_last") if (outcome := result[key])],
            "warnings": [*found, *warnings],
            "milestones": result["milestones"],
            "next": [f"domainclip evaluate --model {shlex.quote(str(folder / 'model'))} --data YOUR_DATA"],
            "trade_off": result["trade_off"],
            **parts,
        }
    )


def _memory_figures(memory: Mapping[str, Any]) -> dict[str, Any]:
    figures = {"peak_memory_mb": memory["measured_peak_mb"]}
    if "predicted_mb" in memory:
        figures["predicted_memory_mb"] = memory["predicted_mb"]
        figures["micro_batch"] = memory["micro_batch_at_the_end"] or memory["batch"]
    return figures
