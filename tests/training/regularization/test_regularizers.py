"""What holds a training near its start: against autograd in float64, in chunks, in processes, and over a resumption."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed import TCPStore

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.losses import MultiPositiveContrastiveLoss
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.training import ContrastiveStep, Trainer
from domainclip.training.distributed import ProcessGroup
from domainclip.training.regularization.initial_weights import initial_weights
from domainclip.training.regularization.regularizers import L2SP, FeatureDistillation
from forked import forking
from gradcache_cases import assert_equal, batch_of, gradients
from tiny_data import TinyData
from training_setup import make_trainer, one_of_two, same, train_until, weights

pytestmark = pytest.mark.slow

STRENGTH = 0.7


def moved(encoder: DualEncoder, seed: int = 3) -> DualEncoder:
    """The same model some way from where it was."""
    other = copy.deepcopy(encoder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return other


def distilling(start: DualEncoder, learning: tuple[str, ...] = ("image", "text")) -> FeatureDistillation:
    return FeatureDistillation(start.encode_image, start.encode_text, STRENGTH, contextlib.nullcontext, learning)


def step_of(
    encoder: DualEncoder, loss: nn.Module, micro_batch: int | None, term: FeatureDistillation
) -> ContrastiveStep:
    return ContrastiveStep(
        encoder.encode_image,
        encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext,
        torch.device("cpu"),
        micro_batch,
        learning=term.learning,
        distillation=term,
    )


def plain_penalty(encoder: DualEncoder, start: DualEncoder, batch: dict[str, Any]) -> Tensor:
    """Row by row, from the definition."""
    ids = batch["input_ids"][batch["caption_index"]]
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(ids)):
        for now, then, given in (
            (encoder.encode_image, start.encode_image, batch["pixels"][row : row + 1]),
            (encoder.encode_text, start.encode_text, ids[row : row + 1]),
        ):
            a, b = now(given)[0], then(given)[0].detach()
            total = total + 1 - (a @ b) / (a.norm() * b.norm())
    return STRENGTH / 2 * total / len(ids)


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 8])
def test_distillation_has_the_gradient_of_its_definition_in_any_micro_batches(micro_batch: int | None) -> None:
    start = make_tiny_clip().double().eval().requires_grad_(False)
    encoder = moved(start).train().requires_grad_(True)
    batch, loss = batch_of(), MultiPositiveContrastiveLoss()
    images = encoder.encode_image(batch["pixels"])
    texts = encoder.encode_text(batch["input_ids"][batch["caption_index"]])
    objective = loss(images, texts, group_ids=batch["group_ids"], logit_scale=encoder.logit_scale)["loss"]
    penalty = plain_penalty(encoder, start, batch)
    (objective + penalty).backward()
    reference = gradients(encoder)
    reported = step_of(encoder, loss, micro_batch, distilling(start))(batch)
    assert float(penalty.detach()) > 0.01
    assert float(reported["distillation"]) == pytest.approx(float(penalty.detach()), rel=1e-10)
    assert float(reported["loss"]) == pytest.approx(float(objective.detach()), rel=1e-10)  # the objective's alone
    assert_equal(gradients(encoder), reference)


def test_a_tower_that_does_not_learn_is_not_asked() -> None:
    start = make_tiny_clip().double().eval().requires_grad_(False)
    encoder = moved(start).train().requires_grad_(True)
    encoder.lock("text")
    with torch.no_grad():  # a locked tower has not moved
        for part in ("text_model", "text_projection"):
            getattr(encoder.model, part).load_state_dict(getattr(start.model, part).state_dict())
    start.encode_text = None  # type: ignore[method-assign, assignment]
    batch, loss = batch_of(), MultiPositiveContrastiveLoss()
    steps = {
        micro_batch: step_of(encoder, loss, micro_batch, distilling(start, ("image",))) for micro_batch in (None, 3)
    }
    reported = {micro_batch: step(batch)["distillation"] for micro_batch, step in steps.items()}
    del start.encode_text
    for value in reported.values():
        assert float(value) == pytest.approx(float(plain_penalty(encoder, start, batch).detach()), rel=1e-10)


def test_l2sp_has_the_gradient_of_half_the_squared_distance() -> None:
    encoder = make_tiny_clip().double()
    start = {name: p.detach().clone() for name, p in encoder.model.named_parameters()}
    encoder.lock("text")
    term = L2SP(encoder, STRENGTH)
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter += 0.1
    penalty = torch.zeros((), dtype=torch.float64)
    for name, parameter in encoder.model.named_parameters():
        if name.startswith(("vision_model.", "visual_projection.")):
            penalty = penalty + STRENGTH / 2 * (parameter - start[name]).square().sum()
    other = sum(p.sin().sum() for p in encoder.model.vision_model.parameters())  # something that has a gradient too
    (penalty + other).backward()
    reference = gradients(encoder)
    sum(p.sin().sum() for p in encoder.model.vision_model.parameters()).backward()  # type: ignore[union-attr]
    reported = term.add_gradient()
    assert float(reported) == pytest.approx(float(penalty.detach()), rel=1e-10)
    assert_equal(gradients(encoder), reference)


def test_new_projections_have_no_start_to_be_held_to() -> None:
    encoder = make_tiny_clip()
    held = {id(parameter) for parameter, _ in L2SP(encoder, 1.0).held}
    assert id(encoder.model.visual_projection.weight) in held
    assert id(encoder.logit_scale) not in held
    encoder.fresh_projections = True
    held = {id(parameter) for parameter, _ in L2SP(encoder, 1.0).held}
    assert id(encoder.model.visual_projection.weight) not in held
    assert id(encoder.model.vision_model.post_layernorm.weight) in held
    with pytest.raises(ConfigurationError, match="none worth keeping"):
        initial_weights(encoder, CLIPFinetuningConfig(distillation_strength=1.0))


def test_adapters_and_l2sp_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="l2sp_strength does not go with lora_r"):
        CLIPFinetuningConfig(lora_r=4, l2sp_strength=0.1)


def test_the_copy_stays_where_it_was() -> None:
    encoder = make_tiny_clip()
    start = initial_weights(encoder, CLIPFinetuningConfig(distillation_strength=1.0))
    assert start is not None and start.encoder is not None
    pixels = torch.randn(2, 3, 48, 48)  # another size than its own: its position embeddings are its own too
    before = encoder.encode_image(pixels)
    assert torch.equal(start.encoder.encode_image(pixels), before)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1
    encoder.train()
    assert torch.equal(start.encoder.encode_image(pixels), before)
    assert not start.encoder.training and start.copy_bytes == sum(p.nbytes for p in encoder.parameters())
    assert initial_weights(encoder, CLIPFinetuningConfig()) is None  # nothing is remembered that nobody asked for


# --- in a training ---

HOLDING: dict[str, Any] = {"l2sp_strength": 0.1, "distillation_strength": 0.5, "save_steps": 1, "eval_steps": 100}


def held_trainer(
    data: TinyData, folder: Path, seed: int = 0, processes: ProcessGroup | None = None, **values: Any
) -> Trainer:
    encoder = make_tiny_clip(seed, attention_dropout=0.0 if processes else 0.1)
    values = {**HOLDING, **values}
    start = initial_weights(encoder, CLIPFinetuningConfig(**values))
    return make_trainer(data.pairs(), folder, encoder=encoder, processes=processes, start=start, **values)


def test_the_stronger_the_hold_the_nearer_the_weights_stay(tiny_data: TinyData, tmp_path: Path) -> None:
    distances = []
    for index, values in enumerate(
        ({"l2sp_strength": 0.0, "distillation_strength": 0.0}, {"distillation_strength": 0.0}, {"l2sp_strength": 10.0})
    ):
        trainer = held_trainer(tiny_data, tmp_path / str(index), num_epochs=4, **values)
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        distances.append(
            sum(float((after[name] - before[name]).square().sum()) for name in before if "logit" not in name)
        )
    assert distances[0] > distances[1] > distances[2] > 0


@pytest.mark.parametrize("stop_at", [2, 4])
def test_a_resumed_training_is_held_to_the_same_start(tiny_data: TinyData, tmp_path: Path, stop_at: int) -> None:
    whole = held_trainer(tiny_data, tmp_path / "whole")
    whole.train()
    broken = held_trainer(tiny_data, tmp_path / "broken")
    train_until(broken, stop_at)
    torch.manual_seed(999)
    again = held_trainer(tiny_data, tmp_path / "broken")
    assert again.train(resume=True).resumed_from == stop_at
    assert same(weights(again), weights(whole))
    with pytest.raises(CheckpointError, match="started from other weights"):
        held_trainer(tiny_data, tmp_path / "broken", seed=9).train(resume=True)


def _process(rank: int, port: int, data: TinyData, folder: Path) -> None:
    with one_of_two(rank, port) as processes:
        trainer = held_trainer(data, folder / "run", processes=processes, mini_batch_size=2)
        trainer.train()
        try:
            held_trainer(data, folder / "other", seed=rank, processes=processes).train()
            message = ""
        except ConfigurationError as error:
            message = str(error)
    torch.save({"weights": weights(trainer), "message": message}, folder / f"{rank}.pt")


@pytest.mark.slowest
def test_two_processes_are_held_as_one_is(tiny_data: TinyData, tmp_path: Path) -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    forking()
    mp.start_processes(_process, (store.port, tiny_data, tmp_path), nprocs=2, start_method="forkserver")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert same(found[0]["weights"], found[1]["weights"])
    encoder = make_tiny_clip(0)
    start = initial_weights(encoder, CLIPFinetuningConfig(**HOLDING))
    alone = make_trainer(tiny_data.pairs(), tmp_path / "alone", encoder=encoder, start=start, **HOLDING)
    alone.train()
    for name, value in weights(alone).items():
        torch.testing.assert_close(found[0]["weights"][name], value, rtol=1e-4, atol=1e-5)
    assert all("different initial weights" in part["message"] for part in found)
