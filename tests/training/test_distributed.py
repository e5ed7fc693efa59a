"""Two processes with half a batch each leave the gradients, and so the weights, of one process with all of it.

Both are started once, do every case below, and put down what they got; the tests compare it with one graph over the
whole batch, made in this process without ``ContrastiveStep``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.distributed import TCPStore

from distributed_cases import (
    CASES,
    SIGMOID,
    STEPS,
    Case,
    _process,
    _reference,
    batch_of,
    contrast,
    gradients,
    make,
    optimizer_of,
)
from domainclip.errors import CLIPFinetuningError, ConfigurationError, DeviceError
from domainclip.training import distributed
from domainclip.training.distributed import ProcessGroup, claim_local_gpu, shard_of, world_size
from forked import forking

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in range(2)]
    forking()
    mp.start_processes(_process, ((stores[0].port, stores[1].port), str(folder)), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_leave_the_gradient_of_one(name: str, both: list[dict[str, Any]]) -> None:
    case = CASES[name]
    encoder, loss, expected_loss, images = _reference(case)
    expected = gradients(encoder, loss)
    for got in (both[0][name], both[1][name]):
        assert got["gradients"].keys() == expected.keys()
        if case.bf16:  # micro-batches of other sizes round differently
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
    assert all(
        abs(float(both[0][name]["gradients"]["model.logit_scale"])) > 1e-6 for name in ("whole", "micro_batches")
    )
    assert float(both[0]["balanced by gradients"]["state"]["norms"].min()) > 0


def test_nothing_is_run_twice_that_fits(both: list[dict[str, Any]]) -> None:
    assert [got["uneven"]["passes"] for got in both] == [[5], [3]]
    assert [got["micro_batches"]["passes"] for got in both] == [[3, 1, 3, 1]] * 2
    assert [got["uneven micro-batches, some kept"]["passes"] for got in both] == [[2, 2, 1, 2, 1], [2, 1, 1]]
    assert [got["the first has no rows"]["passes"] for got in both] == [[], [8]]


def test_two_processes_learn_what_one_learns(both: list[dict[str, Any]]) -> None:
    case = Case(SIGMOID)
    encoder, loss = make(case)
    optimizer = optimizer_of(encoder, loss)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    for index in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        batch = batch_of(case, index)
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
        assert got["objects"] == ({"from": 0}, [[0], [1]])
        assert got["on_first"] == ("result", 0)
    assert (first["did"], second["did"]) == ([0], [])
    assert first["first"] and not second["first"]
    assert [got["fraction"] for got in (first, second)] == [[[0, 1], []], [[2, 3, 4], [0]]]
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
    message, seconds = both[0]["gone"]  # the other has left, long before the 60 seconds that the group may wait
    assert "lost the others" in message and seconds < 50
    message, seconds = both[0]["silent"]  # the other is there until this one has given up, and says nothing
    assert "lost the others" in message and seconds > 0.5


@pytest.mark.parametrize("world", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [0, 1, 2, 6, 7, 100])
def test_fractions_make_up_the_batch(size: int, world: int) -> None:
    parts = [list(range(size))[shard_of(size, rank, world)] for rank in range(world)]
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
    with (
        pytest.raises(CLIPFinetuningError, match=r"lost the others .Connection closed by peer.. Usually"),
        distributed._in_touch(),
    ):
        raise RuntimeError("Connection closed by peer\nlong story")
