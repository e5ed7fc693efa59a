"""Tables about the memory of training steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _table_cells import look_up, newest, number, table

MEMORY_ROWS = (
    "b32_whole",
    "b32_chunks",
    "b32_bf16",
    "b32_checkpointing",
    "b32_lora",
    "b16",
    "starter",
    "b32_in_6_gib",
    "l14_336_in_12_gib",
)
_MODELS = {"b32": "ViT-B/32", "b16": "ViT-B/16", "starter": "starter", "l14": "ViT-L/14@336"}


def memory_table(results: Path) -> str:
    """Predicted and measured peaks; rows with a budget train as the plan recommends for it."""
    record = newest("memory", results)
    rows = []
    for name in MEMORY_ROWS:
        entry = look_up(record, "rows", name)
        budget = look_up(entry, "budget_gib")
        within = look_up(entry, "within_budget")
        fraction = look_up(entry, "predicted_over_measured")
        rows.append(
            [
                _MODELS[name.split("_")[0]],
                number(look_up(entry, "batch"), "d"),
                _way(entry),
                number(look_up(entry, "predicted_gib")),
                number(look_up(entry, "measured_gib")),
                "" if fraction is None else f"{100 * (fraction - 1):+.0f} %",
                number(budget, "g"),
                "" if within is None else "yes" if within else "no",
                number(look_up(entry, "seconds"), ".0f"),
            ]
        )
    header = [
        "shape",
        "batch",
        "how",
        "predicted, GiB",
        "measured, GiB",
        "difference",
        "budget, GiB",
        "within it",
        "a step, s",
    ]
    return table(header, rows)


def _way(entry: Any) -> str:
    if entry is None:
        return ""
    chunk = look_up(entry, "chunk")
    words = ["all at once" if chunk is None else f"micro-batches of {chunk}", str(look_up(entry, "precision"))]
    if look_up(entry, "gradient_checkpointing"):
        words.append("checkpointing")
    if look_up(entry, "lora_r") is not None:
        words.append(f"LoRA, r = {entry['lora_r']}")
    return ", ".join(words)


GRADCACHE_BATCHES = ("32", "256")
GRADCACHE_TIMED_BATCH, GRADCACHE_CHUNK = 64, 16
GRADCACHE_KEPT = ("0", "2", "4", "8")


def gradcache_table(results: Path) -> str:
    """Peak memory by contrastive batch at one chunk; time beside a single pass, by passes that keep their graph."""
    record = newest("gradcache", results)
    chunk = look_up(record, "chunk") or GRADCACHE_CHUNK
    rows = []
    for size in GRADCACHE_BATCHES:
        cell = look_up(record, "results", "memory", size)
        rows.append(
            [
                size,
                f"micro-batches of {chunk}, each passed twice",
                number(look_up(cell, "peak_memory_mb"), ".0f"),
                number(look_up(cell, "ratio_to_smallest"), ".3f"),
                number(look_up(cell, "seconds")),
                "",
                "",
                "",
            ]
        )
    time = look_up(record, "results", "time")
    timed = str(look_up(time, "batch") or GRADCACHE_TIMED_BATCH)
    passes = look_up(time, "passes") or 2 * GRADCACHE_TIMED_BATCH // GRADCACHE_CHUNK
    single = number(look_up(time, "single_pass", "seconds"))
    rows.append([timed, "a single pass", "", "", single, "1.000" if single else "", "", ""])
    for kept in look_up(time, "kept") or GRADCACHE_KEPT:
        cell = look_up(time, "kept", kept)
        rows.append(
            [
                timed,
                f"micro-batches of {chunk}, {kept} of {passes} passes keep their graph",
                "",
                "",
                number(look_up(cell, "seconds")),
                number(look_up(cell, "ratio"), ".3f"),
                number(look_up(cell, "arithmetic"), ".3f"),
                number(look_up(cell, "gradient_difference"), ".0e"),
            ]
        )
    header = [
        "batch",
        "how",
        "peak MiB",
        f"of that at {GRADCACHE_BATCHES[0]}",
        "a step, s",
        "of a single pass",
        "by count",
        "gradient's difference from a single pass",
    ]
    return table(header, rows)
