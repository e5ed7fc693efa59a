"""Two processes with half a batch each leave the gradients, and so the weights, of one process with all of it.

Both are started once, do every case below, and put down what they got; the tests compare it with one graph over the
whole batch, made in this process without ``ContrastiveStep``.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed import TCPStore

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CLIPFinetuningError, ConfigurationError, DeviceError
from domainclip.losses import build_loss, call_objective
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training import distributed
from domainclip.training.distributed import ProcessGroup, claim_local_gpu, share_of, world_size
from domainclip.training.gradcache import ContrastiveStep

ROWS, STEPS = 8, 3
SIGMOID = {"loss_type": "sigmoid"}
BALANCED = {
    "loss_type": "combined", "objectives": {"contrastive": 1.0, "sigmoid": 1.0}, "loss_balancing": "gradient_norm",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    recipe: dict[str, Any] = field(default_factory=lambda: {"loss_type": "multi_positive"})
    cut: int = 4
    """How many rows are the first process'."""
    chunk: int | None = None
    kept_chunks: int = 0
    locked: str | None = None
    dropout: float = 0.0
    bf16: bool = False
    penalised: bool = False
    """The objective also reads a weight of the picture tower."""


CASES = {
    "whole": Case({"loss_type": "contrastive"}),
    "chunks": Case(chunk=3),
    "uneven": Case(cut=5),
    "uneven chunks, some kept": Case(cut=5, chunk=2, kept_chunks=1),
    "the second has no rows": Case(cut=ROWS, chunk=3),
    "the first has no rows": Case(cut=0),
    "locked text": Case(locked="text", chunk=3),
    "locked pictures": Case(locked="image", cut=3),
    "sigmoid": Case(SIGMOID, cut=3, chunk=2),
    "sigmoid with a bias given": Case({**SIGMOID, "sigmoid_bias": -1.0}, cut=5, chunk=2),
    "sigmoid, the second has no rows": Case(SIGMOID, cut=ROWS),
    "balanced by gradients": Case(BALANCED, cut=5, chunk=2),
    "balanced by gradients, locked, no rows": Case(BALANCED, cut=0, locked="text"),
    "a learned metric": Case({"loss_type": "multi_positive", "similarity_metric": "bilinear"}, chunk=3),
    "several sizes": Case({"loss_type": "multi_resolution"}, cut=3, chunk=2),
    "an objective that reads a tower's weight": Case(penalised=True, cut=5, chunk=2),
    "dropout": Case(dropout=0.3, cut=5, chunk=2),
    "bf16": Case(bf16=True, cut=5),
    "bf16 in chunks": Case(bf16=True, cut=5, chunk=2),
}


class Penalised(nn.Module):
    def __init__(self, objective: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.objective = objective
        self.held = [weight]  # in a list: the encoder's parameter, not this module's

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, **context: Any) -> dict[str, Any]:
        output = call_objective(self.objective, image_embeds, text_embeds, **context)
        return {**output, "loss": output["loss"] + self.held[0].square().sum()}


def make(case: Case) -> tuple[DualEncoder, nn.Module]:
    dtype = torch.float32 if case.bf16 else torch.float64
    encoder = make_tiny_clip(attention_dropout=case.dropout).to(dtype).train()
    if case.locked:
        encoder.lock(case.locked)  # type: ignore[arg-type]
    loss = build_loss(CLIPFinetuningConfig(**case.recipe), encoder.embedding_dim).to(dtype).train()
    return encoder, Penalised(loss, encoder.model.visual_projection.weight) if case.penalised else loss


def batch_of(case: Case, step: int = 0) -> dict[str, Any]:
    """Eight pictures that share five texts."""
    generator = torch.Generator().manual_seed(step)
    index = torch.tensor([0, 1, 2, 3, 4, 0, 2, 0])
    ids = torch.randint(5, 300, (5, 9), generator=generator)
    ids[:, -1] = 1  # the end token, where the text is read off
    pixels = torch.randn(ROWS, 3, 32, 32, generator=generator, dtype=torch.float64)
    return {
        "pixels": pixels.float() if case.bf16 else pixels, "input_ids": ids,
        "attention_mask": torch.ones(5, 9, dtype=torch.long), "caption_index": index, "group_ids": index.clone(),
    }  # fmt: skip


def part_of(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """What a process that has read these rows alone would hold."""
    index = batch["caption_index"][rows]
    texts, place = index.unique(return_inverse=True)
    return {
        "pixels": batch["pixels"][rows] if len(index) else None, "input_ids": batch["input_ids"][texts],
        "attention_mask": batch["attention_mask"][texts], "caption_index": place,
        "group_ids": batch["group_ids"][rows],
    }  # fmt: skip


def autocast(case: Case) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if case.bf16 else contextlib.nullcontext()


def pictures(case: Case, encoder: DualEncoder, pixels: Tensor) -> Tensor:
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
        lambda pixels: pictures(case, encoder, pixels), encoder.encode_text,
        lambda x, y, g: contrast(loss, encoder, x, y, g), lambda: autocast(case), torch.device("cpu"), case.chunk,
        kept_chunks=case.kept_chunks, learning={"image", "text"} - encoder.locked, processes=processes,
        parameters=[*encoder.parameters(), *loss.parameters()],
    )  # fmt: skip


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
        "loss": output["loss"], "images": output["image_embeds"], "gradients": gradients(encoder, loss),
        "state": loss.state_dict(), "passes": passes,
    }  # fmt: skip


def _three_steps(processes: ProcessGroup) -> dict[str, Tensor]:
    case = Case(SIGMOID, cut=5, chunk=2)
    encoder, loss = make(case)
    optimizer, step = optimizer_of(encoder, loss), step_of(case, encoder, loss, processes)
    for number in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        step(part_of(batch_of(case, number), _rows(case, processes.rank)))
        optimizer.step()
    return encoder.state_dict() | {f"loss.{name}": p.detach() for name, p in loss.named_parameters()}


def _calls(processes: ProcessGroup) -> dict[str, Any]:
    rank = processes.rank
    parameters = [nn.Parameter(torch.zeros(3, 2, dtype=kind)) for kind in (torch.float64, torch.float32) * 3]
    for number, parameter in enumerate(parameters):
        if number == 1 or number == 2 + rank:
            parameter.grad = torch.full_like(parameter, 10.0**rank * (number + 1))
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
        "any": (processes.any_true(rank == 1), processes.any_true(False)),
        "objects": (processes.broadcast_object({"from": rank}), processes.gather_objects([rank])),
        "on_first": processes.on_first(lambda: did.append(rank) or ("result", rank)),
        "did": did,
        "first": processes.is_first,
        "share": [list(range(size))[processes.share(size)] for size in (5, 1)],
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
    if processes.rank == 1:
        time.sleep(2)
        return {}
    started = time.monotonic()
    return {"silent": (_error_of(processes.barrier), time.monotonic() - started)}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(2)]
    mp.spawn(_process, ((stores[0].port, stores[1].port), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


# --- what one process does ---


def _reference(case: Case) -> tuple[DualEncoder, nn.Module, float, Tensor]:
    """One graph over the rows of both processes; with dropout, in their chunks, each process with its own numbers."""
    encoder, loss = make(case)
    images, texts = [], []
    for rank in range(2):
        torch.manual_seed(11 + rank)
        part = part_of(batch_of(case), _rows(case, rank))
        if part["pixels"] is None:
            continue
        chunk = case.chunk or ROWS
        with autocast(case):
            images += [pictures(case, encoder, pixels) for pixels in part["pixels"].split(chunk)]
            embeds = [encoder.encode_text(ids) for ids in part["input_ids"].split(chunk)]
        texts.append(torch.cat(embeds)[part["caption_index"]])
    x, y = torch.cat(images), torch.cat(texts)
    if case.bf16:
        x, y = x.float(), y.float()
    output = contrast(loss, encoder, x, y, batch_of(case)["group_ids"])
    output["loss"].backward()
    return encoder, loss, float(output["loss"].detach()), x


@pytest.mark.parametrize("name", CASES)
def test_two_processes_leave_the_gradient_of_one(name: str, both: list[dict[str, Any]]) -> None:
    case = CASES[name]
    encoder, loss, expected_loss, images = _reference(case)
    expected = gradients(encoder, loss)
    for got in (both[0][name], both[1][name]):
        assert got["gradients"].keys() == expected.keys()
        if case.bf16:  # chunks of other sizes round differently
            assert float(got["loss"]) == pytest.approx(expected_loss, rel=2e-3)
            apart = sum(float((got["gradients"][key] - value).square().sum()) for key, value in expected.items())
            assert apart**0.5 < 0.02 * sum(float(value.square().sum()) for value in expected.values()) ** 0.5
            continue
        assert float(got["loss"]) == pytest.approx(expected_loss, rel=1e-12)
        torch.testing.assert_close(got["images"], images, rtol=1e-12, atol=1e-12)
        for key, value in expected.items():
            torch.testing.assert_close(
                got["gradients"][key], value, rtol=1e-9, atol=1e-9, msg=lambda text, k=key: f"{k}: {text}"
            )
        torch.testing.assert_close(got["state"], loss.state_dict(), rtol=1e-9, atol=1e-9)
    assert any(float(value.abs().max()) > 1e-4 for value in expected.values())
    assert case.locked is None or not any(f"model.{case.locked}" in key for key in expected)


@pytest.mark.parametrize("name", CASES)
def test_both_hold_the_same_bits(name: str, both: list[dict[str, Any]]) -> None:
    first, second = (got[name]["gradients"] for got in both)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_what_an_objective_learns_has_a_gradient_here(both: list[dict[str, Any]]) -> None:
    """Or the equality above would say nothing of it."""
    assert abs(float(both[0]["sigmoid with a bias given"]["gradients"]["loss.bias"])) > 1e-6
    assert float(both[0]["a learned metric"]["gradients"]["loss.similarity.weight"].abs().max()) > 1e-6
    assert all(abs(float(both[0][name]["gradients"]["model.logit_scale"])) > 1e-6 for name in ("whole", "chunks"))
    assert float(both[0]["balanced by gradients"]["state"]["norms"].min()) > 0


def test_nothing_is_run_twice_that_fits(both: list[dict[str, Any]]) -> None:
    assert [got["uneven"]["passes"] for got in both] == [[5], [3]]
    assert [got["chunks"]["passes"] for got in both] == [[3, 1, 3, 1]] * 2
    assert [got["uneven chunks, some kept"]["passes"] for got in both] == [[2, 2, 1, 2, 1], [2, 1, 1]]
    assert [got["the first has no rows"]["passes"] for got in both] == [[], [8]]


def test_two_processes_learn_what_one_learns(both: list[dict[str, Any]]) -> None:
    case = Case(SIGMOID)
    encoder, loss = make(case)
    optimizer = optimizer_of(encoder, loss)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for number in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        batch = batch_of(case, number)
        texts = encoder.encode_text(batch["input_ids"])[batch["caption_index"]]
        contrast(loss, encoder, encoder.encode_image(batch["pixels"]), texts, batch["group_ids"])["loss"].backward()
        optimizer.step()
    expected = encoder.state_dict() | {f"loss.{name}": p.detach() for name, p in loss.named_parameters()}
    first, second = (got["three steps"] for got in both)
    assert expected.keys() == first.keys() == second.keys()
    for name, value in expected.items():
        torch.testing.assert_close(first[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")
        assert torch.equal(first[name], second[name]), name
    name = "model.visual_projection.weight"
    assert float((expected[name] - before[name]).abs().max()) > 1e-3


# --- the group's calls ---


def test_gradients_are_summed_where_any_process_has_them(both: list[dict[str, Any]]) -> None:
    for got in both:
        summed = got["calls"]["summed"]
        assert summed[0] is None and summed[4] is None
        for number, total in ((1, 22.0), (2, 3.0), (3, 40.0)):  # 2 + 20; the first's 3; the second's 10 × 4
            assert torch.equal(summed[number], torch.full((3, 2), total, dtype=summed[number].dtype))
        assert torch.equal(summed[5], 3 * torch.arange(6.0).reshape(2, 3).T)


def test_numbers_decisions_and_objects_are_agreed_on(both: list[dict[str, Any]]) -> None:
    first, second = (got["calls"] for got in both)
    for got in (first, second):
        assert got["numbers"] == (3, 5)
        assert got["any"] == (True, False)
        assert got["objects"] == ({"from": 0}, [[0], [1]])
        assert got["on_first"] == ("result", 0)
    assert (first["did"], second["did"]) == ([0], [])
    assert first["first"] and not second["first"]
    assert [got["share"] for got in (first, second)] == [[[0, 1], []], [[2, 3, 4], [0]]]
    torch.manual_seed(0)
    begun = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).state_dict()
    for got in (first, second):
        torch.testing.assert_close(got["broadcast"], begun, rtol=0, atol=0)


def test_an_error_reaches_every_process(both: list[dict[str, Any]]) -> None:
    first, second = (got["errors"] for got in both)
    assert first[0] == "ValueError: the disk is full"
    assert second[0].startswith("CLIPFinetuningError: The first of 2 processes stopped with ValueError: the disk")
    for got in (first, second):
        assert "rows of different kinds" in got[1]
        assert "no row of this batch" in got[2]


def test_nobody_waits_for_ever(both: list[dict[str, Any]]) -> None:
    message, seconds = both[0]["gone"]  # the other has left
    assert "lost the others" in message and seconds < 10
    message, seconds = both[0]["silent"]  # the other is there and says nothing
    assert "lost the others" in message and 0.5 < seconds < 1.9


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 2, 6, 7, 100])
def test_shares_make_up_the_batch(size: int, world: int) -> None:
    parts = [list(range(size))[share_of(size, rank, world)] for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


# --- starting ---


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_needs_no_group(environment: pytest.MonkeyPatch) -> None:
    assert ProcessGroup.from_environment(torch.device("cpu")) is None
    environment.setenv("WORLD_SIZE", "1")
    assert world_size() == 1
    assert ProcessGroup.from_environment(torch.device("mps")) is None


@pytest.mark.parametrize(
    ("world", "device", "error", "says"),
    [
        ("two", "cpu", ConfigurationError, "WORLD_SIZE must be a whole number .it is 'two'"),
        ("0", "cpu", ConfigurationError, "WORLD_SIZE must be a whole number"),
        ("2", "cpu", ConfigurationError, "RANK, MASTER_ADDR, MASTER_PORT is not set: start with torchrun"),
        ("2", "mps", DeviceError, "2 processes cannot share the device mps: .* device=cpu"),
        ("2", "cuda:1", DeviceError, "device=cuda:1 would put all 2 processes on one GPU"),
    ],
)
def test_a_group_that_cannot_be(
    environment: pytest.MonkeyPatch, world: str, device: str, error: type[Exception], says: str
) -> None:
    environment.setenv("WORLD_SIZE", world)
    with pytest.raises(error, match=says):
        ProcessGroup.from_environment(torch.device(device))


def test_every_process_takes_its_own_gpu(environment: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    environment.setattr(torch.cuda, "is_available", lambda: True)
    environment.setattr(torch.cuda, "device_count", lambda: 2)
    environment.setattr(torch.cuda, "set_device", taken.append)
    environment.setenv("LOCAL_RANK", "1")
    claim_local_gpu()
    assert taken == []  # one process: CUDA's own choice
    environment.setenv("WORLD_SIZE", "3")
    claim_local_gpu(torch.device("cpu"))
    assert taken == []
    claim_local_gpu()
    assert taken == [1]
    environment.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match=r"process 3 on this machine and it has 2 GPU.*--nproc-per-node 2"):
        claim_local_gpu()


def test_errors_of_the_group_are_the_packages_own() -> None:
    with pytest.raises(CLIPFinetuningError, match=r"lost the others .Connection closed by peer.. Usually"), \
            distributed._in_touch():  # fmt: skip
        raise RuntimeError("Connection closed by peer\nlong story")
