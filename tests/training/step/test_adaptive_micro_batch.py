"""How the micro-batch follows memory: what goes first, what comes back, what is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import out_of_memory_child
from domainclip.errors import CLIPFinetuningError, MemoryConstraintError
from out_of_memory_cases import OTHERS, OUT_OF_MEMORY, Run, assert_same_run, batch_of


def test_frozen_batch_norm_goes_in_micro_batches_and_live_batch_norm_is_told() -> None:
    undisturbed, disturbed = Run(batch_norm=True), Run(batch_norm=True)
    for run in (undisturbed, disturbed):
        run.towers.image[1].eval()
    disturbed.plain.plan = {2: [("image", OUT_OF_MEMORY[0])]}
    assert_same_run(disturbed.train(4), undisturbed.train(4))

    live = Run(batch_norm=True).train(1)
    live.plain.plan = {2: [("text_backward", OUT_OF_MEMORY[0])]}
    before = {name: value.clone() for name, value in live.towers.state_dict().items()}
    assert int(before["image.1.num_batches_tracked"]) == 1
    with pytest.raises(MemoryConstraintError, match="Set freeze_batch_norm=true"):
        live.train(1)
    after = live.towers.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert live.changes == []


def test_the_micro_batch_grows_back_and_a_failed_try_is_made_less_often() -> None:
    run = Run(patience=3)
    run.plain.limit = 4
    run.train(9)
    run.plain.limit = None
    run.train(10)
    run.plain.limit = 8
    run.train(2)
    assert run.moves == [
        (1, 16, 8),
        (1, 8, 4),
        (4, 4, 8),
        (4, 8, 4),  # tried after three steps, in vain: the patience is six
        (10, 4, 8),
        (16, 8, 16),
        (20, 16, 8),  # and failed later on: twelve
    ]
    assert run.step.patience == 12
    assert run.plain.attempts == 21 + 2 + 1 + 1
    assert "3 steps in a row went well" in run.changes[2][3]
    assert "DefaultCPUAllocator" in run.changes[3][3]
    assert_same_run(run, Run().train(21))


def test_graphs_that_are_kept_go_first_and_come_back() -> None:
    run = Run(micro_batch=1, kept_micro_batches=5, patience=2)
    run.plain.plan = {1: [("image", OUT_OF_MEMORY[0])]}
    run.train(2)
    assert (run.plain.micro_batch, run.plain.kept_micro_batches) == (1, 0)
    assert run.moves == [(1, 1, 1)] and "no micro-batch keeps its graph" in run.changes[0][3]
    run.train(1)
    assert (run.plain.micro_batch, run.plain.kept_micro_batches) == (1, 5)
    assert_same_run(run, Run().train(3))


def test_small_images_go_in_larger_micro_batches_until_that_is_too_much() -> None:
    run = Run(micro_batch=2)
    run.step.enlarge(4)
    assert run.plain.micro_batch_of(16) == 8 and run.plain.micro_batch_of(6) == 6
    run.plain.limit = 4
    run.train(1)
    assert run.moves == [(1, 8, 2)] and "no larger micro-batches for small images" in run.changes[0][3]
    run.step.enlarge(4)
    assert run.plain.micro_batch_of(16) == 2
    again = Run(micro_batch=2)
    again.step.load_state_dict(run.step.state_dict())
    again.step.enlarge(4)
    assert again.plain.micro_batch_of(16) == 2
    whole = Run()  # that goes through whole has nothing to enlarge
    whole.step.enlarge(4)
    whole.plain.limit = 8
    whole.train(1)
    assert whole.moves == [(1, 16, 8)]
    assert_same_run(run, Run().train(1))


def test_a_batch_that_fits_anyway_is_no_try() -> None:
    run = Run(patience=2)
    run.plain.limit = 8
    run.train(1)
    run.train(5, rows=8)
    assert run.moves == [(1, 16, 8)]
    run.train(1)
    assert run.moves[1:] == [(7, 8, 16), (7, 16, 8)]


def test_an_odd_micro_batch_is_halved_upwards_until_one_row_does_not_fit() -> None:
    run = Run(micro_batch=5)
    run.plain.limit = 0
    with pytest.raises(MemoryConstraintError, match=r"even one pair at a time .*gradient_checkpointing=true") as caught:
        run.train(1)
    assert [old for _, old, _ in run.moves] == [5, 3, 2]
    assert "DefaultCPUAllocator" in str(caught.value)
    assert run.updates == 0
    assert all(p.grad is None for p in run.parameters)


def test_other_errors_pass_through() -> None:
    run = Run()
    run.plain.plan = {1: [("loss", OTHERS[0])]}
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run.train(1)
    assert (run.plain.attempts, run.changes) == (1, [])


def test_gradients_from_before_are_refused() -> None:
    run = Run().train(1)
    with pytest.raises(CLIPFinetuningError, match="zero_grad"):
        run.step(batch_of(0))


def test_a_resumed_run_makes_the_same_choices() -> None:
    def limited(steps: int) -> Run:
        run = Run(kept_micro_batches=2, dropout=0.2, patience=2)
        torch.manual_seed(9)
        run.plain.limit = 4
        return run.train(steps)

    whole = limited(12)
    first = limited(6)
    state = json.loads(json.dumps(first.step.state_dict()))  # plain enough for any file
    again = Run(dropout=0.2)
    again.plain.limit = 4
    again.towers.load_state_dict(copy.deepcopy(first.towers.state_dict()))
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    again.updates = first.updates
    again.step.load_state_dict(state)
    assert again.step.state_dict() == first.step.state_dict()
    again.train(6)
    assert again.moves == whole.moves[len(first.moves) :]
    assert again.moves  # something was decided after the resumption
    assert again.step.state_dict() == whole.step.state_dict()
    assert all(torch.equal(value, whole.towers.state_dict()[name]) for name, value in again.towers.state_dict().items())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit on address space")
def test_a_real_limit_on_memory(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    child = [sys.executable, out_of_memory_child.__file__, str(file), "70"]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    limited = torch.load(file)
    rows = out_of_memory_child.ROWS
    assert limited["changes"][0][:3] == [2, rows, rows // 2]
    assert all("allocate memory" in reason for *_, reason in limited["changes"])  # the allocator's own words
    weights, changes = out_of_memory_child.train()
    assert changes == []
    for name, value in weights.items():
        torch.testing.assert_close(limited["weights"][name], value, rtol=1e-9, atol=1e-9)
