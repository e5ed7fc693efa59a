"""Milliseconds of a forward pass, by back end and precision, beside what others do with the same weights.

    python benchmarks/inference.py                # the whole measurement, writes benchmarks/results/
    python benchmarks/inference.py --quick        # a tiny model, to see that it runs

A CLIP of ViT-B/32's shape with random weights; images of 224 pixels and texts of 16 and 77 tokens, one and eight at
once. Each library has a process of its own, and they take turns: each side once for each case, round after round.
Tokenizing and the images' resize are outside; normalising is inside on every side. ``cosine`` is the least one of any
row to transformers' float32.

The floor of a precision is the number of operations of the model, counted by torch, over the rate of one large product
of matrices at that precision in the same run, by torch or by OpenVINO, whichever is faster: what a library would reach
that computed nothing else, and every product at full speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _inference_sides import GEMM_SIZE, REFERENCE, prepare
from _record import machine_facts, median, write_record
from _worker import Worker, measurement_parser, parse_or_serve

CASES = [
    *({"tower": "image", "rows": rows, "tokens": 0} for rows in (1, 8)),
    *({"tower": "text", "rows": rows, "tokens": tokens} for tokens in (16, 77) for rows in (1, 8)),
]
LIBRARIES = {"torch": "torch", "openvino": "openvino", "onnx": "onnxruntime"}
EXACT = "transformers, SDPA, float32"
PRECISIONS = ("fp32", "bf16", "int8")


def name_of(case: dict[str, Any]) -> str:
    length = f", {case['tokens']} tokens" if case["tokens"] else ""
    return f"{case['tower']}, batch {case['rows']}{length}"


def precision_of(side: str) -> str:
    """What a side computes in, for its floor; "medium" lets oneDNN take bfloat16."""
    if "int8" in side:
        return "int8"
    return "bf16" if "bf16" in side or "medium" in side or side.startswith("OpenVINO") else "fp32"


def cosine(one: list[list[float]], other: list[list[float]]) -> float:
    def of(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    return min(of(a, b) for a, b in zip(one, other, strict=True))


def run(arguments: argparse.Namespace) -> Path:
    facts = machine_facts()
    for package in ("openvino", "nncf", "onnxruntime", "onnx", "open_clip_torch"):
        try:
            facts["packages"][package] = version(package)
        except PackageNotFoundError:
            facts["packages"][package] = None
    script = Path(__file__).resolve()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        workers = {}
        for library, module in LIBRARIES.items():
            if importlib.util.find_spec(module) is None:
                print(f"{library} is left out: {module} is not installed", flush=True)
                continue
            spec = {
                "name": library,
                "library": library,
                "folder": folder,
                "quick": arguments.quick,
                "threads": arguments.threads,
                "tokenizer": str(arguments.data_root / "clip_tokenizer"),
            }
            workers[library] = stack.enter_context(Worker(script, spec))
        sides = {side: worker for worker in workers.values() for side in worker.facts["sides"]}
        first: dict[str, dict[str, Any]] = {name_of(case): {} for case in CASES}
        for case in CASES:  # also the first use, which compiles
            for side, worker in sides.items():
                first[name_of(case)][side] = worker.ask("embed", side=side, case=case)["rows"]
        input("Ready. Press Enter to measure: ") if arguments.wait else None
        seconds: dict[str, dict[str, list[float]]] = {name_of(case): {side: [] for side in sides} for case in CASES}
        rates: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        order = list(sides)
        for _ in range(arguments.rounds):
            for precision in PRECISIONS:
                asked = {"precision": precision, "seconds": 0.01 if arguments.quick else 0.1}
                both = [worker.ask("gemm", **asked) for name, worker in workers.items() if name != "onnx"]
                rates[precision].append(max(answer["operations_per_s"] for answer in both))
            for case in CASES:
                for side in order:
                    found = sides[side].ask("measure", side=side, case=case, repeats=3 if case["rows"] == 1 else 1)
                    seconds[name_of(case)][side] += found["seconds"]
            order.reverse()
        results = {}
        for case in CASES:
            name = name_of(case)
            operations = workers["torch"].ask("flop", case=case)["operations"]
            floors = {each: 1000 * operations / median(rates[each]) for each in PRECISIONS}
            least_floors = {each: 1000 * operations / max(rates[each]) for each in PRECISIONS}
            reference, least = 1000 * median(seconds[name][REFERENCE]), 1000 * min(seconds[name][REFERENCE])
            results[name] = {
                "operations": operations,
                "floor_ms": {each: round(floor, 3) for each, floor in floors.items()},
                "sides": {
                    side: {
                        "ms": round(1000 * median(taken), 3),
                        "least_ms": round(1000 * min(taken), 3),
                        "times_reference": round(reference / (1000 * median(taken)), 2),
                        # Of the least times, which other work on the machine disturbs less.
                        "least_times_reference": round(least / (1000 * min(taken)), 2),
                        "least_times_floor": round(1000 * min(taken) / least_floors[precision_of(side)], 2),
                        "times_floor": round(1000 * median(taken) / floors[precision_of(side)], 2),
                        "floor_of": precision_of(side),
                        "cosine": None
                        if side.startswith("open_clip")
                        else round(cosine(first[name][side], first[name][EXACT]), 6),
                    }
                    for side, taken in seconds[name].items()
                },
            }
            for side, figures in results[name]["sides"].items():
                print(
                    f"{name}: {side} {figures['ms']:.2f} ms, {figures['times_reference']:.2f} × the reference",
                    flush=True,
                )
        record = {
            "machine": facts,
            "quick": arguments.quick,
            "model": "tiny" if arguments.quick else "ViT-B/32 shape, random weights",
            "reference": REFERENCE,
            "threads": workers["torch"].facts["threads"],
            "rounds": arguments.rounds,
            "gemm": {
                "size": GEMM_SIZE,
                "operations_per_s": {each: round(median(found)) for each, found in rates.items()},
            },
            "results": results,
        }
    return write_record("inference", record, arguments.output)


def main() -> None:
    parser = measurement_parser(__doc__, quick="a tiny model and two rounds")
    parser.add_argument("--rounds", type=int, default=9, help="times that each side has its turn")
    default_data = Path(__file__).resolve().parents[1] / "../shared/data"
    parser.add_argument("--data-root", type=Path, default=Path(os.environ.get("DOMAINCLIP_DATA", default_data)))
    parser.add_argument("--wait", action="store_true", help="wait for Enter between conversion and measurement")
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not arguments.quick and not (arguments.data_root / "clip_tokenizer").is_dir():
        parser.error(f"{arguments.data_root / 'clip_tokenizer'} is missing: give --data-root or set DOMAINCLIP_DATA")
    if arguments.quick:
        arguments.rounds = min(arguments.rounds, 2)
    print(run(arguments))


if __name__ == "__main__":
    main()
