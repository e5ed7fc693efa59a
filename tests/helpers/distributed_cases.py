"""What two processes are given to do, and how a case is made."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, distributed_c10d

from domainclip.config import CLIPFinetuningConfig
from domainclip.losses import build_loss, call_objective
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training import distributed
from domainclip.training.distributed import ProcessGroup
from domainclip.training.step.gradcache import ContrastiveStep

ROWS, STEPS = 8, 3
SIGMOID = {"loss_type": "sigmoid"}
BALANCED = {
    "loss_type": "combined",
    "objectives": {"contrastive": 1.0, "sigmoid": 1.0},
    "loss_balancing": "gradient_norm",
}


@dataclass(frozen=True)
class Case:
    recipe: dict[str, Any] = field(default_factory=lambda: {"loss_type": "multi_positive"})
    cut: int = 4
    """How many rows are the first process'."""
    micro_batch: int | None = None
    kept_micro_batches: int = 0
    locked: str | None = None
    dropout: float = 0.0
    bf16: bool = False
    penalised: bool = False
    """The objective also reads a weight of the image tower."""


class Penalised(nn.Module):
    def __init__(self, objective: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.objective = objective
        self.held = [weight]  # in a list: the encoder's parameter, not this module's

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, **context: Any) -> dict[str, Any]:
        output = call_objective(self.objective, image_embeds, text_embeds, **context)
        return {**output, "loss": output["loss"] + self.held[0].square().sum()}


CASES = {
    "whole": Case({"loss_type": "contrastive"}),
    "micro_batches": Case(micro_batch=3),
    "uneven": Case(cut=5),
    "uneven micro-batches, some kept": Case(cut=5, micro_batch=2, kept_micro_batches=1),
    "the second has no rows": Case(cut=ROWS, micro_batch=3),
    "the first has no rows": Case(cut=0),
    "locked text": Case(locked="text", micro_batch=3),
    "locked images": Case(locked="image", cut=3),
    "sigmoid": Case(SIGMOID, cut=3, micro_batch=2),
    "sigmoid with a bias given": Case({**SIGMOID, "sigmoid_bias": -1.0}, cut=5, micro_batch=2),
    "sigmoid, the second has no rows": Case(SIGMOID, cut=ROWS),
    "balanced by gradients": Case(BALANCED, cut=5, micro_batch=2),
    "balanced by gradients, locked, no rows": Case(BALANCED, cut=0, locked="text"),
    "a learned metric": Case({"loss_type": "multi_positive", "similarity_metric": "bilinear"}, micro_batch=3),
    "several sizes": Case({"loss_type": "multi_resolution"}, cut=3, micro_batch=2),
    "an objective that reads a tower's weight": Case(penalised=True, cut=5, micro_batch=2),
    "dropout": Case(dropout=0.3, cut=5, micro_batch=2),
    "bf16": Case(bf16=True, cut=5),
    "bf16 in micro-batches": Case(bf16=True, cut=5, micro_batch=2),
}


def make(case: Case) -> tuple[DualEncoder, nn.Module]:
    dtype = torch.float32 if case.bf16 else torch.float64
    encoder = make_tiny_clip(attention_dropout=case.dropout).to(dtype).train()
    if case.locked:
        encoder.lock(case.locked)  # type: ignore[arg-type]
    loss = build_loss(CLIPFinetuningConfig(**case.recipe), encoder.embedding_dim).to(dtype).train()
    return encoder, Penalised(loss, encoder.model.visual_projection.weight) if case.penalised else loss


def batch_of(case: Case, step: int = 0) -> dict[str, Any]:
    """Eight images that share five texts."""
    generator = torch.Generator().manual_seed(step)
    index = torch.tensor([0, 1, 2, 3, 4, 0, 2, 0])
    ids = torch.randint(5, 300, (5, 9), generator=generator)
    ids[:, -1] = 1  # the end token, where the text is read off
    pixels = torch.randn(ROWS, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {
        "pixels": pixels.float() if case.bf16 else pixels,
        "input_ids": ids,
        "attention_mask": torch.ones(5, 9, dtype=torch.long),
        "caption_index": index,
        "group_ids": index.clone(),
    }


def part_of(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """What a process that has read these rows alone would hold."""
    index = batch["caption_index"][rows]
    texts, place = index.unique(return_inverse=True)
    return {
        "pixels": batch["pixels"][rows] if len(index) else None,
        "input_ids": batch["input_ids"][texts],
        "attention_mask": batch["attention_mask"][texts],
        "caption_index": place,
        "group_ids": batch["group_ids"][rows],
    }


def autocast(case: Case) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if case.bf16 else contextlib.nullcontext()


def embedded_images(case: Case, encoder: DualEncoder, pixels: Tensor) -> Tensor:
    if case.recipe["loss_type"] != "multi_resolution":
        return encoder.encode_image(pixels)
    return torch.stack([encoder.encode_image(pixels), encoder.encode_image(pixels.flip(-1) / 2)], dim=1)


def contrast(loss: nn.Module, encoder: DualEncoder, x: Tensor, y: Tensor, groups: Tensor) -> dict[str, Any]:
    return call_objective(loss, x, y, group_ids=groups, logit_scale=encoder.logit_scale, progress=0.5)


def gradients(encoder: nn.Module, loss: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
    return found | {f"loss.{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}


def optimizer_of(encoder: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    learning = [p for module in (encoder, loss) for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(learning, lr=1e-3)


# --- what the two processes do ---


def _process(rank: int, ports: tuple[int, int], folder: str) -> None:
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}  # the parent keeps the store
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **address}
    got: dict[str, Any] = {}
    for port, timeout, work in (
        (ports[0], timedelta(seconds=60), _all_cases),
        (ports[1], timedelta(seconds=1), _a_silent_partner),
    ):
        os.environ["MASTER_PORT"] = str(port)
        processes = ProcessGroup.from_environment(torch.device("cpu"), timeout)
        assert processes is not None
        with processes:
            got |= work(processes)
    torch.save(got, Path(folder) / f"{rank}.pt")


def _all_cases(processes: ProcessGroup) -> dict[str, Any]:
    got: dict[str, Any] = {name: _one_case(case, processes) for name, case in CASES.items()}
    got["three steps"] = _three_steps(processes)
    got["calls"] = _calls(processes)
    got["errors"] = _errors(processes)
    if processes.rank == 1:
        return got  # leaves the group, while the other expects an answer
    started = time.monotonic()
    got["gone"] = (_error_of(lambda: processes.total(1)), time.monotonic() - started)
    return got


def step_of(case: Case, encoder: DualEncoder, loss: nn.Module, processes: ProcessGroup) -> ContrastiveStep:
    return ContrastiveStep(
        lambda pixels: embedded_images(case, encoder, pixels),
        encoder.encode_text,
        lambda x, y, g: contrast(loss, encoder, x, y, g),
        lambda: autocast(case),
        torch.device("cpu"),
        case.micro_batch,
        kept_micro_batches=case.kept_micro_batches,
        learning={"image", "text"} - encoder.locked,
        processes=processes,
        parameters=[*encoder.parameters(), *loss.parameters()],
    )


def _rows(case: Case, rank: int) -> slice:
    return slice(0, case.cut) if rank == 0 else slice(case.cut, ROWS)


def _one_case(case: Case, processes: ProcessGroup) -> dict[str, Any]:
    encoder, loss = make(case)
    passes = []
    step = step_of(case, encoder, loss, processes)
    encode = step.encode_image
    step.encode_image = lambda pixels: passes.append(len(pixels)) or encode(pixels)  # type: ignore[func-returns-value]
    torch.manual_seed(11 + processes.rank)
    output = step(part_of(batch_of(case), _rows(case, processes.rank)))
    return {
        "loss": output["loss"],
        "images": output["image_embeds"],
        "gradients": gradients(encoder, loss),
        "state": loss.state_dict(),
        "passes": passes,
    }


def _three_steps(processes: ProcessGroup) -> dict[str, Tensor]:
    case = Case(SIGMOID, cut=5, micro_batch=2)
    encoder, loss = make(case)
    optimizer, step = optimizer_of(encoder, loss), step_of(case, encoder, loss, processes)
    for index in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        step(part_of(batch_of(case, index), _rows(case, processes.rank)))
        optimizer.step()
    return encoder.state_dict() | {f"loss.{name}": p.detach() for name, p in loss.named_parameters()}


def _calls(processes: ProcessGroup) -> dict[str, Any]:
    rank = processes.rank
    parameters = [nn.Parameter(torch.zeros(3, 2, dtype=kind)) for kind in (torch.float64, torch.float32) * 3]
    for index, parameter in enumerate(parameters):
        if index == 1 or index == 2 + rank:
            parameter.grad = torch.full_like(parameter, 10.0**rank * (index + 1))
    parameters[5].grad = torch.arange(6.0).reshape(2, 3).T * (rank + 1)  # not contiguous
    distributed._BUCKET_BYTES = 40  # so that a bucket is full at times
    processes.sum_gradients(parameters)
    distributed._BUCKET_BYTES = 32 * 2**20
    torch.manual_seed(rank)
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module[1].running_mean += rank  # type: ignore[operator]
    processes.broadcast_state(module)
    did = []
    return {
        "summed": [parameter.grad for parameter in parameters],
        "broadcast": module.state_dict(),
        "numbers": (processes.largest(3 - rank), processes.total(3 - rank)),
        "objects": (processes.broadcast_object({"from": rank}), processes.gather_objects([rank])),
        "on_first": processes.on_first(lambda: did.append(rank) or ("result", rank)),
        "did": did,
        "first": processes.is_first,
        "fraction": [list(range(size))[processes.shard(size)] for size in (5, 1)],
        "barrier": processes.barrier(),
    }


def _error_of(work: Callable[[], object]) -> str:
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _errors(processes: ProcessGroup) -> list[str]:
    def fail() -> None:
        raise ValueError("the disk is full")

    return [
        _error_of(lambda: processes.on_first(fail)),
        _error_of(lambda: processes.gather_rows(torch.zeros(2, 3 + processes.rank))),
        _error_of(lambda: processes.gather_rows(None)),
    ]


def _a_silent_partner(processes: ProcessGroup) -> dict[str, Any]:
    store = PrefixStore("silent", distributed_c10d._get_default_store())
    if processes.rank == 1:  # stays until the other has given up: no other event can have ended its waiting
        store.wait(["given up"], timedelta(seconds=120))
        return {}
    started = time.monotonic()
    message = _error_of(processes.barrier)
    store.set("given up", "")
    return {"silent": (message, time.monotonic() - started)}


# --- what one process does ---


def _reference(case: Case) -> tuple[DualEncoder, nn.Module, float, Tensor]:
    """One graph over the rows of both processes; with dropout, in their micro-batches, each process with its own
    numbers."""
    encoder, loss = make(case)
    images, texts = [], []
    for rank in range(2):
        torch.manual_seed(11 + rank)
        part = part_of(batch_of(case), _rows(case, rank))
        if part["pixels"] is None:
            continue
        micro_batch = case.micro_batch or ROWS
        with autocast(case):
            images += [embedded_images(case, encoder, pixels) for pixels in part["pixels"].split(micro_batch)]
            embeds = [encoder.encode_text(ids) for ids in part["input_ids"].split(micro_batch)]
        texts.append(torch.cat(embeds)[part["caption_index"]])
    x, y = torch.cat(images), torch.cat(texts)
    if case.bf16:
        x, y = x.float(), y.float()
    output = contrast(loss, encoder, x, y, batch_of(case)["group_ids"])
    output["loss"].backward()
    return encoder, loss, float(output["loss"].detach()), x
