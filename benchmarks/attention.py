"""Time and memory of a transformer layer in training, by how its attention is computed and how many tokens it sees.

    python benchmarks/attention.py                # the whole measurement, writes benchmarks/results/
    python benchmarks/attention.py --quick        # a tiny layer and few tokens, to see that it runs

Layers of CLIP's image tower (ViT-B: width 768, 12 heads), forward and backward down to their input, in float32. Every
cell has a process of its own: peak memory is that of the whole process and cannot be reset. It is counted above what
the process had reached before, after a pass over a few tokens, and divided by the layers; so it holds the part that a
single layer needs while it works, besides what each layer keeps. ``kept_mb`` is that second part alone: all that waits
for the backward pass, the weights apart. The first pass counts for memory, the median of the later ones for time.
Gradients at the input are compared with those of ``sdpa``. A cell that would not fit into the memory stays null.
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

TOKENS = (50, 197, 577, 1025, 1600)
QUICK_TOKENS = (50,)
KINDS = ("sdpa", "eager", "sliced")
WIDTH, HEADS = 768, 12
MATRICES_HELD = 4
"""Matrices of batch × heads × tokens × tokens float32 to leave room for besides one a layer: will it fit?"""


# --- in the worker ---


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    import torch
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPEncoder

    from domainclip.devices.memory import peak_memory_mb
    from domainclip.models.attention import AttentionDecision

    torch.manual_seed(0)
    tokens, batch = spec["tokens"], spec["batch"]
    config = CLIPVisionConfig(
        hidden_size=spec["width"],
        intermediate_size=4 * spec["width"],
        num_attention_heads=spec["heads"],
        num_hidden_layers=spec["layers"],
    )
    config._attn_implementation = AttentionDecision(spec["kind"], spec["slice_size"], "").implementation
    layers = CLIPEncoder(config).train()
    hidden = torch.randn(batch, tokens, spec["width"])
    weights = torch.randn(batch, tokens, spec["width"])

    def one_pass(inputs: torch.Tensor, goal: torch.Tensor) -> float:
        layers.zero_grad(set_to_none=True)
        clock = time.perf_counter()
        (layers(inputs_embeds=inputs).last_hidden_state * goal).sum().backward()
        return time.perf_counter() - clock

    cpu = torch.device("cpu")
    one_pass(hidden[:1, :8].clone().requires_grad_(), weights[:1, :8])  # what is loaded at the first use
    before = peak_memory_mb(cpu)

    def measure(repeats: int, seconds: float) -> dict[str, Any]:
        leaf = hidden.clone().requires_grad_()
        one_pass(leaf, weights)
        peak = peak_memory_mb(cpu)
        assert leaf.grad is not None
        gradient = leaf.grad.clone()
        passes: list[float] = []
        while len(passes) < repeats and (not passes or sum(passes) < seconds):
            passes.append(one_pass(leaf, weights))
        reference = Path(spec["folder"]) / "sdpa.pt"
        difference = None
        if spec["kind"] == "sdpa":
            torch.save(gradient, reference)
        else:
            other = torch.load(reference)
            difference = float((gradient - other).norm() / other.norm())
        return {
            "peak_mb_per_layer": round((peak - before) / spec["layers"], 2),
            "kept_mb_per_layer": round(kept_mb(leaf) / spec["layers"], 2),
            "seconds_per_layer": round(median(passes) / spec["layers"], 5),
            "passes_timed": len(passes),
            "slice_size": spec["slice_size"],
            "gradient_difference": difference,
        }

    def kept_mb(leaf: torch.Tensor) -> float:
        fixed = {value.untyped_storage().data_ptr() for value in (*layers.parameters(), leaf)}
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in fixed:
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            # The graph must live until all is counted: an address that is free again would be counted once for two.
            output = layers(inputs_embeds=leaf).last_hidden_state
        total = sum(storages.values())
        del output
        return total / 2**20

    return {"threads": torch.get_num_threads()}, {"measure": measure}


# --- in the parent ---


def needed_mb(kind: str, tokens: int, batch: int, heads: int, layers: int) -> float:
    """What the attention matrices take that ``kind`` holds at one time."""
    matrices = {"eager": layers + MATRICES_HELD, "sliced": MATRICES_HELD, "sdpa": 0}[kind]
    return matrices * batch * heads * tokens**2 * 4 / 2**20


def run(arguments: argparse.Namespace) -> Path:
    """Write the record anew after each cell: what an interruption leaves is a valid record."""
    sizes = QUICK_TOKENS if arguments.quick else tuple(arguments.tokens)
    width, heads = (32, 2) if arguments.quick else (WIDTH, HEADS)
    results: dict[str, dict[str, Any]] = {str(size): dict.fromkeys(KINDS) for size in sizes}
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "quick": arguments.quick,
        "batch": arguments.batch,
        "layers": arguments.layers,
        "width": width,
        "heads": heads,
        "dtype": "float32",
        "threads": None,
        "results": results,
    }
    script, path = Path(__file__).resolve(), Path()
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder:
            for kind in KINDS:
                available = psutil.virtual_memory().available / 2**20
                needed = needed_mb(kind, size, arguments.batch, heads, arguments.layers)
                if needed > available:
                    print(f"{kind} {size}: not run, {needed:.0f} MiB needed, {available:.0f} available", flush=True)
                    continue
                spec = {
                    "name": f"{kind} {size}",
                    "kind": kind,
                    "tokens": size,
                    "batch": arguments.batch,
                    "layers": arguments.layers,
                    "width": width,
                    "heads": heads,
                    "folder": folder,
                    "slice_size": (8 if arguments.quick else arguments.slice_size) if kind == "sliced" else None,
                }
                load = machine_facts()["load_average_at_start"]
                with Worker(script, spec) as worker:
                    answer = worker.ask("measure", repeats=arguments.repeats, seconds=arguments.seconds)
                    record["threads"] = worker.facts["threads"]
                results[str(size)][kind] = {**answer, "load_average_at_start": load}
                path = write_record("attention", record, arguments.output)
                print(
                    f"{spec['name']}: a layer takes {1000 * answer['seconds_per_layer']:.1f} ms, "
                    f"{answer['peak_mb_per_layer']:.1f} MiB at the peak, keeps {answer['kept_mb_per_layer']:.1f} MiB",
                    flush=True,
                )
    return path


def main() -> None:
    parser = measurement_parser(__doc__, quick="a tiny layer and few tokens")
    parser.add_argument("--tokens", nargs="+", type=int, default=list(TOKENS), help="tokens of an image")
    parser.add_argument("--batch", type=int, default=2, help="images")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--slice-size", type=int, default=128, help="queries in a block of sliced attention")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each cell at the most")
    parser.add_argument("--seconds", type=float, default=20, help="no further pass of a cell begins after this long")
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    if min(arguments.repeats, arguments.batch, arguments.layers, arguments.slice_size) < 1 or min(arguments.tokens) < 8:
        parser.error("--repeats, --batch, --layers and --slice-size must be at least 1, --tokens at least 8")
    print(run(arguments))


if __name__ == "__main__":
    main()
