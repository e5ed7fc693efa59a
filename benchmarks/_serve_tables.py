"""The tables about the service."""

from __future__ import annotations

from pathlib import Path

from _table_cells import look_up, newest, number, table

SERVE_SIDES = ("naive", "infinity", "ours, torch", "ours, torch:bf16", "ours, openvino:bf16", "ours, openvino:int8")


def serve_table(results: Path) -> str:
    """One pair at a time, and 16 clients that each wait for their answer."""
    parts = look_up(newest("serve", results), "results")
    rows = []
    for side in SERVE_SIDES:
        alone, clients = look_up(parts, "alone", side), look_up(parts, "clients", side)
        times = look_up(clients, "times_naive")
        cosines = [look_up(clients, "cosine_to_float32", kind) for kind in ("images", "texts")]
        rows.append(
            [
                side,
                *(number(look_up(alone, "latency_ms", name)) for name in ("p50", "p95")),
                *(number(look_up(clients, name)) for name in ("answers_per_s",)),
                "" if times is None else f"{times:.1f}×",
                " / ".join(number(each, ".5f") for each in cosines) if all(cosines) else "",
            ]
        )
    header = ["server", "alone, p50 ms", "p95 ms", "16 clients, pairs/s", "times naive", "least cosine, image / text"]
    return table(header, rows)
