"""What a contrastive batch costs that goes through the towers in chunks: peak memory, and time beside a single pass.

    python benchmarks/gradcache.py                # the whole measurement, writes benchmarks/results/
    python benchmarks/gradcache.py --quick        # a tiny model and few pairs, to see that it runs

CLIP ViT-B/32's shape with random weights, images of 224 pixels held as bytes, captions of 16 tokens, float32, forward
and backward without the optimizer: weights and gradients are there, the optimizer's state is not, so that what the
batch adds weighs more than in a training.

Memory: one step of each batch size with the same chunk, in a process of its own, since the peak is that of the whole
process and cannot be reset. ``peak_before_mb`` is what the process had reached after a step of two chunks of one pair.
``ratio_to_smallest`` compares each peak with that of the smallest batch.

Time: one process takes turns between a single pass over the batch and chunks of which none, a quarter, half or all
passes keep their graph (``kept``: a chunk goes through two towers, which makes two passes). A ratio is the median of
the rounds' own ratios to the single pass, in turned order every second round. The gradients of the first round are
compared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import psutil

from _record import machine_facts, median, write_record
from _worker import Handler, Worker, measurement_parser, parse_or_serve

BATCHES = (32, 256)
MICRO_BATCH, TIMED_BATCH = 16, 64
QUICK_BATCHES, QUICK_CHUNK, QUICK_TIMED_BATCH = (4, 16), 2, 8
TEXT_LENGTH = 16
SINGLE_PASS = "single_pass"
MB_PER_PAIR, MB_OF_MODEL = 72, 2500
"""Roughly what a single pass over a batch holds: will it fit?"""


# --- in the worker ---


def _model(quick: bool) -> Any:
    from transformers import CLIPConfig, CLIPModel

    if not quick:
        return CLIPModel(CLIPConfig())  # transformers' defaults are ViT-B/32's
    tower = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 600, "eos_token_id": 599, "bos_token_id": 598, "pad_token_id": 599},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=32,
    )
    return CLIPModel(config)


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    import contextlib

    import torch

    from domainclip.devices import DeviceManager
    from domainclip.devices.memory import peak_memory_mb
    from domainclip.losses import CLIPContrastiveLoss
    from domainclip.training import ContrastiveStep

    manager = DeviceManager(device="cpu")
    settings = [f"{what}: {reason}" for what, reason in manager.optimize_for_device()]
    torch.manual_seed(0)
    model, loss, cpu = _model(spec["quick"]).train(), CLIPContrastiveLoss(), torch.device("cpu")
    side, words = model.config.vision_config.image_size, model.config.text_config
    step = ContrastiveStep(
        lambda pixels: model.get_image_features(pixel_values=pixels / 127.5 - 1).pooler_output,
        lambda ids, mask: model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output,
        lambda images, texts, groups: loss(images, texts, group_ids=groups, logit_scale=model.logit_scale),
        contextlib.nullcontext,
        cpu,
    )

    def batch_of(size: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(size)
        ids = torch.randint(1, words.eos_token_id - 1, (size, TEXT_LENGTH), generator=generator)
        ids[:, -1] = words.eos_token_id
        return {
            "pixels": torch.randint(0, 256, (size, 3, side, side), generator=generator, dtype=torch.uint8),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "caption_index": torch.arange(size),
            "group_ids": torch.arange(size),
        }

    def one_step(batch: dict[str, Any], chunk: int | None, kept: int) -> tuple[float, float]:
        model.zero_grad(set_to_none=True)
        step.micro_batch, step.kept_micro_batches = chunk, kept
        clock = time.perf_counter()
        output = step(batch)
        return time.perf_counter() - clock, float(output["loss"])

    one_step(batch_of(2), 1, 0)  # what is loaded at the first use

    def memory(size: int, chunk: int) -> dict[str, Any]:
        before = peak_memory_mb(cpu)
        seconds, value = one_step(batch_of(size), chunk, 0)
        return {
            "peak_memory_mb": round(peak_memory_mb(cpu), 1),
            "peak_before_mb": round(before, 1),
            "seconds": round(seconds, 3),
            "loss": value,
        }

    def timing(size: int, chunk: int, kept: list[int], repeats: int, seconds: float) -> dict[str, Any]:
        batch = batch_of(size)
        sides: dict[str, tuple[int | None, int]] = {SINGLE_PASS: (None, 0), **{str(k): (chunk, k) for k in kept}}
        took: dict[str, list[float]] = {name: [] for name in sides}
        apart: dict[str, float] = {}
        whole: list[torch.Tensor] = []
        norm = 0.0
        one_step(batch_of(2 * chunk), chunk, 0)
        one_step(batch_of(2 * chunk), None, 0)
        started = time.perf_counter()
        for index in range(repeats):
            if index and time.perf_counter() - started > seconds:
                break
            for name in sides if index % 2 == 0 else reversed(sides):
                took[name].append(one_step(batch, *sides[name])[0])
                if index:
                    continue
                found = [p.grad for p in model.parameters() if p.grad is not None]
                if name == SINGLE_PASS:
                    whole = found
                    norm = float(torch.stack([g.norm() for g in whole]).norm())
                else:
                    differences = [(g - w).norm() for g, w in zip(found, whole, strict=True)]
                    apart[name] = float(torch.stack(differences).norm()) / norm
        passes = 2 * -(-size // chunk)
        return {
            "batch": size,
            "passes": passes,
            "rounds": len(took[SINGLE_PASS]),
            SINGLE_PASS: {"seconds": round(median(took[SINGLE_PASS]), 4)},
            "kept": {
                name: {
                    "seconds": round(median(values), 4),
                    "ratio": round(median([v / w for v, w in zip(values, took[SINGLE_PASS], strict=True)]), 4),
                    "arithmetic": round(1 + (1 - min(int(name), passes) / passes) / 3, 4),
                    "gradient_difference": apart[name],
                }
                for name, values in took.items()
                if name != SINGLE_PASS
            },
        }

    return {"threads": torch.get_num_threads(), "settings": settings}, {"memory": memory, "timing": timing}


# --- in the parent ---


def run(arguments: argparse.Namespace) -> Path:
    """Write the record anew after each cell: what an interruption leaves is a valid record."""
    batches = QUICK_BATCHES if arguments.quick else tuple(sorted(arguments.batches))
    chunk = QUICK_CHUNK if arguments.quick else arguments.chunk
    timed = QUICK_TIMED_BATCH if arguments.quick else arguments.timed_batch
    by_size: dict[str, Any] = {str(size): None for size in batches}
    results: dict[str, Any] = {"memory": by_size, "time": None}
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "quick": arguments.quick,
        "dtype": "float32",
        "chunk": chunk,
        "text_length": TEXT_LENGTH,
        "threads": None,
        "settings": None,
        "results": results,
    }
    script, path = Path(__file__).resolve(), Path()
    for size in batches:
        load = machine_facts()["load_average_at_start"]
        with Worker(script, {"name": f"memory {size}", "quick": arguments.quick}) as worker:
            record["threads"], record["settings"] = worker.facts["threads"], worker.facts["settings"]
            answer = worker.ask("memory", size=size, chunk=chunk)
        smallest = by_size[str(batches[0])] or answer
        ratio = round(answer["peak_memory_mb"] / smallest["peak_memory_mb"], 4)
        by_size[str(size)] = {**answer, "ratio_to_smallest": ratio, "load_average_at_start": load}
        path = write_record("gradcache", record, arguments.output)
        print(
            f"batch {size} in chunks of {chunk}: {answer['peak_memory_mb']:.0f} MiB ({ratio:.3f} times that of "
            f"{batches[0]}), {answer['seconds']:.1f} s",
            flush=True,
        )
    needed = 0 if arguments.quick else MB_OF_MODEL + MB_PER_PAIR * timed
    available = psutil.virtual_memory().available / 2**20
    if needed > available:
        print(f"time: not run, a single pass needs about {needed} MiB and {available:.0f} are available", flush=True)
        return path
    passes = 2 * -(-timed // chunk)
    kept = sorted({0, passes // 4, passes // 2, passes})
    load = machine_facts()["load_average_at_start"]
    with Worker(script, {"name": f"time {timed}", "quick": arguments.quick}) as worker:
        answer = worker.ask(
            "timing", size=timed, chunk=chunk, kept=kept, repeats=arguments.repeats, seconds=arguments.seconds
        )
    results["time"] = {**answer, "load_average_at_start": load}
    path = write_record("gradcache", record, arguments.output)
    print(f"batch {timed} in a single pass: {answer[SINGLE_PASS]['seconds']:.2f} s", flush=True)
    for count, cell in answer["kept"].items():
        print(f"{count} of {passes} passes kept: {cell['ratio']:.3f} times that ({cell['arithmetic']:.3f} by count)")
    return path


def main() -> None:
    parser = measurement_parser(__doc__, quick="a tiny model and few pairs")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="pairs, for peak memory")
    parser.add_argument("--chunk", type=int, default=MICRO_BATCH, help="pairs that go through a tower at once")
    parser.add_argument("--timed-batch", type=int, default=TIMED_BATCH, help="pairs, for time")
    parser.add_argument("--repeats", type=int, default=3, help="rounds at the most")
    parser.add_argument("--seconds", type=float, default=150, help="no further round begins after this long")
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    if arguments.repeats < 1 or arguments.chunk < 1:
        parser.error("--repeats and --chunk must be at least 1")
    if min(*arguments.batches, arguments.timed_batch) <= arguments.chunk:
        parser.error(f"--batches and --timed-batch must be larger than --chunk ({arguments.chunk})")
    print(run(arguments))


if __name__ == "__main__":
    main()
