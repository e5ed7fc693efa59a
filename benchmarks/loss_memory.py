"""Peak memory and time of a loss over large batches: the B × B matrix held whole, and computed in chunks of rows.

    python benchmarks/loss_memory.py                # the whole measurement, writes benchmarks/results/
    python benchmarks/loss_memory.py --quick        # tiny batches, to see that it runs

Every cell is one forward and backward pass, down to the embeddings, in a process of its own: peak memory is that of the
whole process and cannot be reset. ``peak_before_mb`` is what the process had reached before, libraries and embeddings
included. The first pass counts for memory, the median of all passes for time. Whole and chunked see equal numbers, and
their losses and gradients are compared. A cell that would not fit into the memory there is stays null.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from _record import machine_facts, median, write_record
from _worker import Handler, Worker, measurement_parser, parse_or_serve

SIZES = (4096, 16384, 32768)
QUICK_SIZES = (64, 96)
COMPARED = "multi_positive"
"""Measured whole and in chunks at every size; the others in chunks at the largest."""
ONLY_CHUNKED = ("hard_negative", "sigmoid")
MATRICES_HELD = 10
"""Matrices of B × B float32 that the whole loss needs at its peak (9.4 were measured at B = 3,072): will it fit?"""


# --- in the worker ---


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    if spec["task"] == "compare":
        return {}, {"compare": lambda: compare(Path(spec["folder"]))}
    import numpy as np
    import torch

    from domainclip.config import CLIPFinetuningConfig
    from domainclip.devices.memory import peak_memory_mb
    from domainclip.losses import build_loss
    from domainclip.losses.objective import CHUNK_ENTRIES

    cpu = torch.device("cpu")
    size, dim = spec["size"], spec["dim"]
    chunk = size if spec["how"] == "whole" else spec["chunk"] or max(1, min(size // 2, CHUNK_ENTRIES // size))
    config = CLIPFinetuningConfig(
        loss_type=spec["objective"], loss_chunk_size=chunk, temperature=0.05, hardness_warmup=0.0
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, dim, generator=generator)
    # Pairs are alike and not equal (a cosine of about 0.7), and some captions repeat, as in real data.
    texts = images + torch.randn(size, dim, generator=generator)
    groups = torch.arange(size)
    groups[: size // 8] = groups[: size // 8] // 2
    sides = images.requires_grad_(), texts.requires_grad_()
    first: list[Any] = []

    def one_pass() -> float:
        for side in sides:
            side.grad = None
        loss = build_loss(config)  # anew: what an objective sets from its first batch is part of the work
        clock = time.perf_counter()
        output = loss(*sides, group_ids=groups, progress=1.0)
        output["loss"].backward()
        seconds = time.perf_counter() - clock
        first.append(float(output["loss"].detach()))
        return seconds

    # What is loaded at the first use (by checkpointing, 80 MiB) is no part of the loss: one pass in chunks, one whole.
    small = torch.randn(8, dim).requires_grad_()
    for rows in (4, 8):
        build_loss(config.model_copy(update={"loss_chunk_size": rows}))(small, small)["loss"].backward()
    before = peak_memory_mb(cpu)

    def measure(repeats: int, seconds: float) -> dict[str, Any]:
        passes = [one_pass()]
        peak = peak_memory_mb(cpu)
        while len(passes) < repeats and sum(passes) < seconds:
            passes.append(one_pass())
        assert all(side.grad is not None for side in sides)
        if spec["folder"]:
            grads = np.stack([side.grad.numpy() for side in sides if side.grad is not None])
            np.savez(Path(spec["folder"]) / f"{spec['how']}.npz", loss=first[0], gradient=grads)
        return {
            "peak_memory_mb": round(peak, 1),
            "peak_before_mb": round(before, 1),
            "seconds": round(median(passes), 4),
            "passes_timed": len(passes),
            "chunk_size": chunk,
            "loss": first[0],
        }

    return {"threads": torch.get_num_threads()}, {"measure": measure}


def compare(folder: Path) -> dict[str, Any]:
    """In a process of its own too: one that holds such arrays would hand its peak on to the next it starts."""
    import numpy as np

    whole, chunked = (np.load(folder / f"{how}.npz") for how in ("whole", "chunked"))
    apart = np.abs(whole["gradient"] - chunked["gradient"]).max()
    return {
        "loss": float(abs(whole["loss"] - chunked["loss"]) / abs(whole["loss"])),
        "gradient": float(apart / np.abs(whole["gradient"]).max()),
    }


# --- in the parent ---


def needed_mb(size: int) -> float:
    return MATRICES_HELD * size * size * 4 / 2**20


def run(arguments: argparse.Namespace) -> Path:
    """Write the record anew after each cell: what an interruption leaves is a valid record."""
    sizes = QUICK_SIZES if arguments.quick else tuple(arguments.sizes)
    results: dict[str, dict[str, Any]] = {
        COMPARED: {str(size): {"whole": None, "chunked": None, "relative_difference": None} for size in sizes},
        **{
            objective: {str(max(sizes)): {"whole": None, "chunked": None, "relative_difference": None}}
            for objective in ONLY_CHUNKED
        },
    }
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "quick": arguments.quick,
        "dim": 32 if arguments.quick else arguments.dim,
        "dtype": "float32",
        "threads": None,
        "results": results,
    }
    script, path = Path(__file__).resolve(), Path()
    for objective, by_size in results.items():
        for size, cell in by_size.items():
            with tempfile.TemporaryDirectory() as folder:
                for how in ("whole", "chunked") if objective == COMPARED else ("chunked",):
                    available = psutil.virtual_memory().available / 2**20
                    if how == "whole" and needed_mb(int(size)) > available:
                        print(
                            f"{objective} {size} whole: not run, it needs about {needed_mb(int(size)):.0f} MiB "
                            f"and {available:.0f} are available",
                            flush=True,
                        )
                        continue
                    spec = {
                        "task": "measure",
                        "name": f"{objective} {size} {how}",
                        "objective": objective,
                        "size": int(size),
                        "dim": record["dim"],
                        "how": how,
                        "chunk": 16 if arguments.quick else None,
                        "folder": folder if objective == COMPARED else None,
                    }
                    load = machine_facts()["load_average_at_start"]
                    with Worker(script, spec) as worker:
                        answer = worker.ask("measure", repeats=arguments.repeats, seconds=arguments.seconds)
                        record["threads"] = worker.facts["threads"]
                    cell[how] = {**answer, "load_average_at_start": load}
                    path = write_record("loss_memory", record, arguments.output)
                    print(
                        f"{spec['name']}: {answer['peak_memory_mb']:.0f} MiB ({answer['peak_before_mb']:.0f} before), "
                        f"{answer['seconds']:.2f} s, loss {answer['loss']:.6f}",
                        flush=True,
                    )
                if cell["whole"] and cell["chunked"]:
                    with Worker(script, {"task": "compare", "folder": folder}) as worker:
                        cell["relative_difference"] = worker.ask("compare")
                    path = write_record("loss_memory", record, arguments.output)
    return path


def main() -> None:
    parser = measurement_parser(__doc__, quick="tiny batches")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help="pairs in a batch")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="passes of each cell at the most")
    parser.add_argument("--seconds", type=float, default=60, help="no further pass of a cell begins after this long")
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    if arguments.repeats < 1 or min(arguments.sizes) < 2:
        parser.error("--repeats must be at least 1, --sizes at least 2")
    print(run(arguments))


if __name__ == "__main__":
    main()
