"""The two sides of ``train_step.py``, a worker process each: a plain ``transformers`` loop, and this trainer."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _worker import Handler

if TYPE_CHECKING:  # torch is imported in the worker alone: see _record.py
    from domainclip.data import CLIPDataset
    from domainclip.models import DualEncoder

WARMUP_STEPS = 5
LEARNING_RATE = 5e-5


def _encoder(spec: dict[str, Any]) -> DualEncoder:
    """Random weights, the same in every worker. The tokenizer is CLIP's own except for the tiny model."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    from domainclip.models import DualEncoder, EncoderProcessor, make_tiny_clip

    if spec["model"] == "tiny":
        return make_tiny_clip(spec["seed"])
    from _clip_tokenizer import clip_tokenizer

    torch.manual_seed(spec["seed"])
    # transformers' defaults are ViT-B/32's: 12 layers each, widths 768 and 512, 224 pixels, 77 tokens, no dropout.
    model = CLIPModel(CLIPConfig())
    processor = EncoderProcessor(
        clip_tokenizer(Path(spec["tokenizer"])), CLIPImageProcessorPil(), "causal", max_length=77
    )
    return DualEncoder(model, processor, name="ViT-B/32, random weights")


def _settings(spec: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Device, precision, and what was done to the process."""
    import torch

    from domainclip.devices import DeviceManager, choose_precision

    manager = DeviceManager(device="cpu")
    if spec["settings"] in {"policy", "float32"}:
        done = [f"{what}: {reason}" for what, reason in manager.optimize_for_device()]
        precision = choose_precision(manager.device, mixed_precision=spec["settings"] == "policy")
        return manager.device, precision, [*done, f"precision {precision.name}: {precision.reason}"]
    torch.set_float32_matmul_precision(spec["settings"])
    precision = choose_precision(manager.device, mixed_precision=False)
    return (
        manager.device,
        precision,
        [f"float32, matmul precision {spec['settings']!r}, nothing else changed"],
    )


def _dataset(spec: dict[str, Any], encoder: DualEncoder) -> tuple[CLIPDataset, Any]:
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.data import CLIPDataset, DatasetLoader

    pairs = DatasetLoader.from_csv(Path(spec["data"]) / "train.csv", image_col="image_path", caption_col="caption")
    config = CLIPFinetuningConfig(
        batch_size=spec["batch"],
        num_epochs=1000,
        max_steps=spec["total_steps"],
        warmup_steps=WARMUP_STEPS,
        learning_rate=LEARNING_RATE,
        loss_type="contrastive",
        num_workers=0,
        augment_images=False,
        seed=spec["seed"],
    )
    return CLIPDataset(pairs, encoder.processor, config), config


def _keys(sampler: Any) -> Iterator[list[tuple[int, int]]]:
    """The batches of every epoch, one after another: both sides read the same."""
    epoch = 0
    while True:
        sampler.set_position(epoch)
        yield from sampler
        epoch += 1


Step = Callable[[list[tuple[int, int]]], tuple[float, float, float]]
"""Takes a batch's keys, gives seconds, processor seconds and loss."""


def _our_step(spec: dict[str, Any], folder: Path) -> tuple[Step, Any, list[str]]:
    import torch

    from domainclip.domains import load_domain
    from domainclip.losses import build_loss
    from domainclip.pipelines.assemble import training_loader
    from domainclip.resolve import ResolvedRun
    from domainclip.training import TrainContext, build_trainer

    device, precision, done = _settings(spec)
    encoder = _encoder(spec)
    encoder.optimize_layout(device)
    dataset, config = _dataset(spec, encoder)
    run = ResolvedRun(config.frozen(), load_domain(config.domain))
    loader = training_loader(dataset, run, device)
    trainer = build_trainer(TrainContext(folder), encoder, build_loss(config), loader, run, device, precision)
    encoder.train()

    def step(keys: list[tuple[int, int]]) -> tuple[float, float, float]:
        items = [dataset.fetch(key) for key in keys]
        clock, cpu = time.perf_counter(), time.process_time()
        assert loader.collate_fn is not None
        output, _ = trainer.step.update(loader.collate_fn(items), trainer.state.step)
        assert output is not None
        loss = float(output["loss"])
        seconds, cpu_seconds = time.perf_counter() - clock, time.process_time() - cpu
        trainer.state.step += 1
        return seconds, cpu_seconds, loss

    return step, loader.batch_sampler, [*done, f"torch threads: {torch.get_num_threads()}"]


def _plain_step(spec: dict[str, Any]) -> tuple[Step, Any, list[str]]:
    import torch

    from domainclip.data.batches import EpochBatchSampler
    from domainclip.training.optim.optimizer import rate_factor

    _, _, done = _settings(spec)
    encoder = _encoder(spec)
    dataset, config = _dataset(spec, encoder)
    model: Any = encoder.model.train()
    tokenizer = encoder.processor.tokenizer
    tokens = tokenizer(
        [pair.caption for pair in dataset.pairs],
        padding="max_length",
        truncation=True,
        max_length=77,
        return_tensors="pt",
    )
    named = list(model.named_parameters())
    decayed = [p for name, p in named if p.ndim >= 2]
    others = [p for name, p in named if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        fused=True,  # as in transformers' own Trainer, whose default is adamw_torch_fused
    )
    sampler = EpochBatchSampler(len(dataset), spec["batch"], config.seed, shuffle=True, drop_last=True)
    total = min(spec["total_steps"], len(sampler) * config.num_epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, config.warmup_steps, total, config.min_learning_rate_ratio)
    )
    spec_of_images = dataset.image_transform.spec

    def step(keys: list[tuple[int, int]]) -> tuple[float, float, float]:
        rows = [row for _, row in keys]
        batch = {
            "pixel_values": spec_of_images.normalise(torch.stack([dataset.pixels(key) for key in keys])),
            "input_ids": tokens["input_ids"][rows],
            "attention_mask": tokens["attention_mask"][rows],
        }
        clock, cpu = time.perf_counter(), time.process_time()
        loss = model(**batch, return_loss=True).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        return time.perf_counter() - clock, time.process_time() - cpu, value

    return step, sampler, [*done, f"torch threads: {torch.get_num_threads()}"]


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Handler]]:
    from domainclip.devices.memory import peak_memory_mb

    folder = tempfile.TemporaryDirectory()
    if spec["side"] == "ours":
        step, sampler, settings = _our_step(spec, Path(folder.name))
    else:
        step, sampler, settings = _plain_step(spec)
    keys = _keys(sampler)

    def steps(count: int) -> dict[str, Any]:
        done = [step(next(keys)) for _ in range(count)]
        seconds, cpu_seconds, losses = (list(values) for values in zip(*done, strict=True))
        return {"seconds": seconds, "cpu_seconds": cpu_seconds, "losses": losses}

    def finish() -> dict[str, Any]:
        import torch

        folder.cleanup()
        return {"peak_memory_mb": peak_memory_mb(torch.device("cpu"))}

    return {"settings": settings}, {"steps": steps, "finish": finish}
