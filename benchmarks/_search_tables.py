"""The table about search."""

from __future__ import annotations

from pathlib import Path

from _table_cells import look_up, newest, number, table

SEARCH_ROWS = ("200000", "1000000")
SEARCH_SIDES = (
    "exact index",
    "exact index without torch",
    "numpy float32",
    "torch float32",
    "faiss Flat",
    "faiss SQ8 + refine",
    "usearch exact i8",
    "usearch exact f16",
    "turbovec 4 bit + rerank",
)
_TIMES = ("single", "batch", "single_filtered", "batch_filtered")


def search_table(results: Path) -> str:
    """Milliseconds a query, of image and text queries, and how many times as long as the exact index a text takes."""
    record = newest("search", results)
    rows = []
    for size in SEARCH_ROWS:
        for side in SEARCH_SIDES:
            entry = look_up(record, "results", size, "sides", side)

            def both(form: str, *keys: str, entry: object = entry) -> str:
                cells = [number(look_up(entry, kind, *keys), form) for kind in ("image", "text")]
                return " / ".join(cells) if any(cells) else ""

            ratios = [look_up(entry, "text", mode, "times_ours") for mode in ("single", "batch")]
            rows.append(
                [
                    f"{int(size):,}",
                    side,
                    both(".3f", "recall_at_10"),
                    both(".0f", "reranked_mean"),
                    *(both(".2f", mode, "ms_per_query") for mode in _TIMES),
                    *("" if value is None else f"{value:.1f}×" for value in ratios),
                ]
            )
    header = [
        "rows",
        "index",
        "recall@10, image / text",
        "rows reranked",
        "single, ms",
        "in a batch of 32, ms",
        "single, 1 % allowed",
        "batch, 1 % allowed",
        "single, text: times ours",
        "batch, text: times ours",
    ]
    return table(header, rows)
