"""Predicted and measured peak memory of training steps, and whether the large ones keep within their budgets.

    python benchmarks/memory.py                          # the whole measurement, writes benchmarks/results/
    python benchmarks/memory.py --rows b32_whole b16     # some rows
    python benchmarks/memory.py --quick                  # a tiny model, to see that it runs

The prediction is that of ``domainclip memory plan``, made in a process that loads no model. The measurement is the peak
resident memory (``ru_maxrss``) of another process, which trains the same shape with random weights, random images and
captions of 77 tokens: first a step over a few pairs, so that there is optimizer state, then one over the whole batch.
Rows with a budget train with what the plan recommends for it. The C allocator gives freed memory back, as in a run that
is short of memory; one that keeps it, as runs with room have it for speed, holds up to 1.0 GiB more. A row that would
not fit into the memory there is stays null.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from pathlib import Path
from typing import Any

import psutil

from _record import machine_facts, write_record
from _worker import Handler, Worker, measurement_parser, parse_or_serve

STARTER = Path(__file__).resolve().parents[2] / "shared" / "models" / "starter"
GIB = 2**30

_B32: dict[str, Any] = {"model": "vit-b-32", "batch": 256, "chunk": 16}
ROWS: dict[str, dict[str, Any]] = {
    "b32_whole": {**_B32, "batch": 32, "chunk": None},
    "b32_chunks": _B32,
    "b32_bf16": {**_B32, "precision": "bf16"},
    "b32_checkpointing": {**_B32, "chunk": 64, "gradient_checkpointing": True},
    "b32_lora": {**_B32, "lora_r": 8},
    "b16": {"model": "vit-b-16", "batch": 64, "chunk": 8},
    "starter": {"model": "starter", "batch": 128, "chunk": None},
    "b32_in_6_gib": {"model": "vit-b-32", "batch": 256, "budget_gib": 6, "lora": False},
    # bf16: a step in float32 takes several times as long on a CPU, and needs about the same.
    "l14_336_in_12_gib": {"model": "vit-l-14-336", "batch": 64, "budget_gib": 12, "lora": True, "precision": "bf16"},
}
QUICK_ROWS: dict[str, dict[str, Any]] = {
    "tiny_whole": {"model": "tiny", "batch": 32, "chunk": None},
    "tiny_chunks": {"model": "tiny", "batch": 32, "chunk": 4, "gradient_checkpointing": True},
    "tiny_in_8_gib": {"model": "tiny", "batch": 32, "budget_gib": 8, "lora": False},
}
RECIPE_KEYS = ("precision", "gradient_checkpointing", "lora_r")


# --- in the workers ---


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    import torch

    from domainclip.config import CLIPFinetuningConfig
    from domainclip.training.memory.plan import ModelShape

    shape = ModelShape.named(spec["model"])
    processor = shape.processor.image_processor
    side = int((processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size)["height"])
    length = min(77, shape.processor.max_length)

    def recipe() -> CLIPFinetuningConfig:
        chosen = {key: spec[key] for key in RECIPE_KEYS if spec.get(key) is not None}
        return CLIPFinetuningConfig(
            image_resolution=side,
            max_sequence_length=length,
            loss_type="contrastive",
            mini_batch_size=spec["chunk"],
            **{"precision": "fp32", **chosen},
        )

    def recommend() -> dict[str, Any]:
        from domainclip.pipelines.memory_plan import make_plan

        plan = make_plan(
            spec["model"],
            int(spec["budget_gib"] * GIB),
            batch=spec["batch"],
            lora=spec["lora"],
            precisions=(spec.get("precision", "fp32"),),
        )
        return {"recommended": plan.recommended, "reason": plan.reason}

    def predict() -> dict[str, Any]:
        from domainclip.training.memory.plan import plan_step

        overhead = psutil.Process().memory_info().rss
        clock = time.perf_counter()
        memory = plan_step(shape, *[recipe()] * 3, "cpu", overhead)
        seconds = time.perf_counter() - clock
        chunk = spec["chunk"] or spec["batch"]
        return {
            "predicted_gib": round(memory.peak(chunk, spec["batch"]) / GIB, 3),
            "state_gib": round(memory.state / GIB, 3),
            "overhead_gib": round(overhead / GIB, 3),
            "seconds_to_predict": round(seconds, 2),
        }

    handlers: dict[str, Handler] = {
        "recommend": recommend,
        "predict": predict,
        "measure": lambda: _measure(spec, shape, recipe(), side, length),
    }
    return {"threads": torch.get_num_threads(), "resolution": side}, handlers


def _measure(spec: dict[str, Any], shape: Any, recipe: Any, side: int, length: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModel

    from domainclip.data.images.image_spec import ImageSpec
    from domainclip.devices import DeviceManager
    from domainclip.devices.memory import peak_memory_mb
    from domainclip.devices.optimization import spare_memory
    from domainclip.devices.precision import choose_precision
    from domainclip.losses import build_loss
    from domainclip.models import DualEncoder
    from domainclip.models.attention import decide_attention
    from domainclip.models.checkpoint_blocks import checkpoint_blocks
    from domainclip.models.lora import attach_lora
    from domainclip.training.optim.optimizer import build_optimizer
    from domainclip.training.step.gradcache import ContrastiveStep
    from domainclip.training.step.views import ImageViews

    DeviceManager(device="cpu").optimize_for_device()
    cpu = torch.device("cpu")
    spare_memory(cpu)  # as a run does whose step nearly fills the memory
    precision = choose_precision("cpu", recipe.precision)
    torch.manual_seed(0)
    encoder = DualEncoder(AutoModel.from_config(shape.config, dtype=torch.float32), shape.processor, name=shape.name)
    encoder.optimize_layout(cpu)
    if recipe.lora_r is not None:
        attach_lora(encoder, recipe, recipe.seed)
    checkpoint_blocks(encoder.model, bool(recipe.gradient_checkpointing))
    encoder.set_attention(
        **decide_attention(
            encoder,
            recipe,
            batch=spec["chunk"] or spec["batch"],
            device_type="cpu",
            training=True,
            precision=precision.name,
            memory_bytes=psutil.virtual_memory().total // 2,
            resolution=side,
            text_length=length,
        )
    )
    encoder.train()
    loss = build_loss(recipe)

    def contrast(images: torch.Tensor, texts: torch.Tensor, groups: torch.Tensor) -> dict[str, Any]:
        return loss(images, texts, group_ids=groups, logit_scale=encoder.logit_scale, progress=0.0)

    step = ContrastiveStep(
        ImageViews(encoder, ImageSpec.from_processor(shape.processor.image_processor), None),
        encoder.encode_text,
        contrast,
        lambda: precision.autocast(cpu),
        cpu,
        micro_batch=spec["chunk"],
    )
    optimizer = build_optimizer(encoder, recipe, cpu, loss)

    def train(pairs: int) -> tuple[float, float]:
        text = encoder.model.config.text_config
        ids = torch.randint(5, text.vocab_size - 5, (pairs, length))
        ids[:, -1] = getattr(text, "eos_token_id", None) or text.vocab_size - 1
        batch = {
            "pixels": torch.randint(0, 256, (pairs, 3, side, side), dtype=torch.uint8),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "caption_index": torch.arange(pairs),
            "group_ids": torch.arange(pairs),
        }
        clock = time.perf_counter()
        output = step(batch)
        torch.nn.utils.clip_grad_norm_([p for p in encoder.parameters() if p.requires_grad], recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - clock, float(output["loss"])

    train(3)
    before = peak_memory_mb(cpu)
    seconds, value = train(spec["batch"])
    return {
        "measured_gib": round(peak_memory_mb(cpu) / 1024, 3),
        "measured_before_gib": round(before / 1024, 3),
        "seconds": round(seconds, 1),
        "loss": round(value, 4),
    }


# --- in the parent ---


def run(arguments: argparse.Namespace) -> Path:
    """Write the record anew after each row: what an interruption leaves is a valid record."""
    rows = QUICK_ROWS if arguments.quick else ROWS
    names = arguments.rows or list(rows)
    # Rows that are asked for by name join those measured earlier the same day.
    today = arguments.output / f"memory-{datetime.date.today().isoformat()}.json"
    earlier = json.loads(today.read_text())["rows"] if arguments.rows and today.is_file() else {}
    results: dict[str, dict[str, Any]] = {name: earlier[name] for name in rows if name in earlier}
    record: dict[str, Any] = {
        "machine": machine_facts(),
        "quick": arguments.quick,
        "optimizer": "adamw",
        "threads": None,
        "rows": results,
    }
    path = Path()
    for name in names:
        results[name] = row(name, rows[name], record)
        path = write_record("memory", record, arguments.output)
        print(f"{name}: {_words(results[name])}", flush=True)
    return path


def row(name: str, asked: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    script = Path(__file__).resolve()
    spec = {"chunk": None, **asked, "name": name}
    if spec["model"] == "starter":
        spec["model"] = str(STARTER)
    result: dict[str, Any] = {"load_average_at_start": machine_facts()["load_average_at_start"]}
    with Worker(script, spec) as worker:
        result["resolution"] = worker.facts["resolution"]
        record["threads"] = worker.facts["threads"]
        if "budget_gib" in spec:
            plan = worker.ask("recommend")
            result |= {"budget_gib": spec["budget_gib"], "plan": plan["reason"]}
            if plan["recommended"] is None:
                return {**asked, **result, "measured_gib": None}
            spec |= {key: plan["recommended"].get(key) for key in RECIPE_KEYS}
            spec["chunk"] = plan["recommended"].get("mini_batch_size")
        else:
            result |= worker.ask("predict")
    settings = {key: spec.get(key) for key in ("batch", "chunk", *RECIPE_KEYS)}
    result |= {"model": asked["model"], **settings, "precision": settings["precision"] or "fp32"}
    if "budget_gib" in spec:
        # A process of its own, so that what the plan's search has left behind is not in the figure.
        with Worker(script, spec) as worker:
            result |= worker.ask("predict")
    available = psutil.virtual_memory().available / GIB
    if result["predicted_gib"] > available:
        return {**result, "measured_gib": None, "available_gib": round(available, 1)}
    with Worker(script, spec) as worker:
        result |= worker.ask("measure")
    result["predicted_over_measured"] = round(result["predicted_gib"] / result["measured_gib"], 3)
    if "budget_gib" in result:
        result["within_budget"] = result["measured_gib"] <= result["budget_gib"]
    return result


def _words(result: dict[str, Any]) -> str:
    if result["measured_gib"] is None:
        return f"not run ({result.get('plan') or str(result['available_gib']) + ' GiB are available'})"
    return (
        f"{result['predicted_gib']:.2f} GiB predicted, {result['measured_gib']:.2f} measured "
        f"({result['predicted_over_measured']:.2f}), {result['seconds']:.1f} s"
    )


def main() -> None:
    parser = measurement_parser(__doc__, quick="a tiny model")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS, *QUICK_ROWS], help="which rows; default: all")
    arguments = parse_or_serve(parser, prepare)
    if arguments is None:
        return
    known = QUICK_ROWS if arguments.quick else ROWS
    if unknown := [name for name in arguments.rows or [] if name not in known]:
        parser.error(f"--rows {' '.join(unknown)}: choose from {', '.join(known)}")
    if "starter" in (arguments.rows or ([] if arguments.quick else known)) and not STARTER.is_dir():
        parser.error("the row starter needs the starter model; leave it out with --rows")
    print(run(arguments))


if __name__ == "__main__":
    main()
