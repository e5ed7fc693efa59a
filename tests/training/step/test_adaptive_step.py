"""A step that runs out of memory is repeated in smaller chunks, and nothing of the failed attempt is left."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from domainclip.config import CLIPFinetuningConfig
from domainclip.devices.out_of_memory import is_out_of_memory
from domainclip.losses import CLIPContrastiveLoss, build_loss
from out_of_memory_cases import OTHERS, OUT_OF_MEMORY, ROWS, STEPS, Run, assert_same_run


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:40])
def test_out_of_memory_is_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_torch_really_raises_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8)  # more than any address space
    assert is_out_of_memory(caught.value)


WHOLE = ("image", "text", "loss", "image_backward", "text_backward")


@pytest.mark.parametrize("place", WHOLE)
def test_a_whole_batch_that_failed_anywhere_is_repeated_in_micro_batches(place: str) -> None:
    undisturbed = Run().train()
    disturbed = Run(patience=100)
    disturbed.plain.plan = {4: [(place, OUT_OF_MEMORY[0])]}
    disturbed.train()
    assert disturbed.plain.attempts == STEPS + 1
    assert disturbed.moves == [(4, 16, 8)]
    assert disturbed.micro_batches == [16] * 3 + [8] * 7
    assert undisturbed.changes == []
    assert_same_run(disturbed, undisturbed)


@pytest.mark.parametrize("kept", [0, 3])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_that_runs_out_at_random_is_the_run_that_never_did(seed: int, kept: int) -> None:
    draw = random.Random(seed)
    undisturbed = Run().train()
    disturbed = Run(micro_batch=8, kept_micro_batches=kept)
    steps = draw.sample(range(1, STEPS + 1), 3)
    # Images' micro-batches that have kept their graph are not replayed, so nothing can happen there.
    disturbed.plain.plan = {
        step: [(draw.choice(WHOLE if kept else (*WHOLE, "replay")), draw.choice(OUT_OF_MEMORY))] for step in steps
    }
    disturbed.plain.plan[steps[0]].append(("loss", draw.choice(OUT_OF_MEMORY)))  # and the repeat fails as well
    disturbed.train()
    assert disturbed.plain.attempts == STEPS + 4
    assert len([change for change in disturbed.changes if "out of memory (" in change[3]]) == 4
    assert_same_run(disturbed, undisturbed)
    # logit_scale's gradient is there once, however often it was begun.
    scales = [[g for g in step if g.ndim == 0] for step in disturbed.gradients]
    assert all(len(found) == 1 and abs(float(found[0])) > 1e-6 for found in scales)


def test_in_float32_the_repeated_steps_gradient_is_that_of_the_whole_batch() -> None:
    for place in ("loss", "text_backward"):
        whole, repeated = Run(dtype=torch.float32), Run(dtype=torch.float32)
        repeated.plain.plan = {1: [(place, OUT_OF_MEMORY[2]), ("replay", OUT_OF_MEMORY[2])]}
        whole.train(1)
        repeated.train(1)
        assert repeated.micro_batches == [4]
        for value, reference in zip(repeated.gradients[0], whole.gradients[0], strict=True):
            assert float((value - reference).norm()) <= 1e-5 * float(reference.norm())
            assert float(reference.norm()) > 1e-6


def test_dropout_and_every_generator_are_those_of_a_run_with_the_same_micro_batches() -> None:
    disturbed = Run(dropout=0.4, patience=100)
    disturbed.plain.plan = {3: [("loss", OUT_OF_MEMORY[0])], 6: [("replay", OUT_OF_MEMORY[1])]}
    planned = Run(dropout=0.4)
    states = []
    for run in (disturbed, planned):
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        for step, micro_batch in enumerate([16, 16, 8, 8, 8, 4, 4, 4], start=1):
            if run is planned:
                run.plain.micro_batch = micro_batch
            run.train(1)
            assert run.micro_batches[-1] == micro_batch, step
        states.append((torch.get_rng_state(), np.random.get_state()[1:3], random.getstate()))
    assert_same_run(disturbed, planned)
    assert torch.equal(states[0][0], states[1][0])
    assert np.array_equal(states[0][1][0], states[1][1][0]) and states[0][1][1] == states[1][1][1]
    assert states[0][2] == states[1][2]


class RememberingLoss(nn.Module):
    """An objective with every kind of memory, all of which its next value depends on."""

    kept: Tensor
    replaced: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.contrastive = CLIPContrastiveLoss()
        self.register_buffer("kept", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.start = nn.Parameter(torch.zeros(()))
        self.calls: dict[str, list[int]] = {"sizes": []}

    def get_extra_state(self) -> dict[str, list[int]]:
        return self.calls

    def set_extra_state(self, state: dict[str, list[int]]) -> None:
        self.calls = state

    def forward(self, x: Tensor, y: Tensor, group_ids: Tensor, logit_scale: Tensor) -> dict[str, Any]:
        output = self.contrastive(x, y, logit_scale=logit_scale)
        if not self.calls["sizes"]:
            with torch.no_grad():
                self.start.add_(output["loss"].detach())
        self.calls["sizes"].append(len(x))
        self.kept.mul_(0.9).add_(output["loss"].detach())
        self.replaced = self.replaced + 1
        factor = 1 + 0.1 * self.kept + 0.05 * self.replaced + 0.01 * len(self.calls["sizes"])
        return {**output, "loss": output["loss"] * factor + self.start.square()}


@pytest.mark.parametrize("place", ["loss", "text_backward"])
def test_an_objectives_memory_forgets_the_failed_attempt(place: str) -> None:
    undisturbed = Run(loss=RememberingLoss()).train(4)
    disturbed = Run(loss=RememberingLoss())
    disturbed.plain.plan = {1: [(place, OUT_OF_MEMORY[0])], 3: [(place, OUT_OF_MEMORY[0])]}
    disturbed.train(4)
    assert disturbed.loss.get_extra_state() == {"sizes": [ROWS] * 4}
    assert len(disturbed.changes) >= 2
    assert_same_run(disturbed, undisturbed)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss_type": "sigmoid"},
        {
            "loss_type": "combined",
            "objectives": {"multi_positive": 1, "sigmoid": 0.1},
            "loss_balancing": "gradient_norm",
        },
    ],
    ids=["sigmoid", "gradient_norm"],
)
def test_the_packages_own_objectives_with_a_memory(settings: dict[str, Any]) -> None:
    config = CLIPFinetuningConfig(**settings)
    undisturbed = Run(loss=build_loss(config)).train(4)
    disturbed = Run(loss=build_loss(config))
    disturbed.plain.plan = {1: [("text_backward", OUT_OF_MEMORY[0])], 2: [("loss", OUT_OF_MEMORY[0])]}
    disturbed.train(4)
    assert_same_run(disturbed, undisturbed)
