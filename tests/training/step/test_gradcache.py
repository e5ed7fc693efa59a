"""Chunks equal the whole batch, and the lean path equals the plain one, in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.batches import PairCollator, collate_fn
from domainclip.data.dataset import CLIPDataset
from domainclip.losses import CLIPContrastiveLoss, MultiPositiveContrastiveLoss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from gradcache_cases import Loss, assert_equal, batch_of, gradients, step_of
from model_zoo import save_siglip, save_vision_text
from tiny_data import TinyData


@pytest.mark.parametrize("loss", [CLIPContrastiveLoss(), MultiPositiveContrastiveLoss()])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_micro_batches_give_the_whole_batchs_gradient(loss: Loss, micro_batch: int) -> None:
    encoder = make_tiny_clip().double().train()
    batch = batch_of()
    # The reference knows nothing of ContrastiveStep: every row's own caption, one graph.
    images = encoder.encode_image(batch["pixels"])
    texts = encoder.encode_text(batch["input_ids"][batch["caption_index"]])
    whole = loss(images, texts, group_ids=batch["group_ids"], logit_scale=encoder.logit_scale)["loss"]
    whole.backward()
    reference = gradients(encoder)
    output = step_of(encoder, loss, micro_batch)(batch)
    assert float(output["loss"]) == pytest.approx(float(whole.detach()), rel=1e-12)
    mine = gradients(encoder)
    assert_equal(mine, reference)
    # Counted once, not once a micro-batch.
    assert float(mine["logit_scale"]) == pytest.approx(float(reference["logit_scale"]), rel=1e-9)
    assert abs(float(reference["logit_scale"])) > 1e-6


def _in_micro_batches_with_graph(encoder: DualEncoder, loss: Loss, batch: dict[str, Any], micro_batch: int) -> Tensor:
    images = torch.cat([encoder.encode_image(part) for part in batch["pixels"].split(micro_batch)])
    texts = torch.cat([encoder.encode_text(part) for part in batch["input_ids"].split(micro_batch)])
    return loss(images, texts[batch["caption_index"]], group_ids=batch["group_ids"], logit_scale=encoder.logit_scale)[
        "loss"
    ]


@pytest.mark.parametrize("micro_batch", [1, 3, 5])
def test_with_dropout_micro_batches_are_replayed_with_their_own_numbers(micro_batch: int) -> None:
    encoder = make_tiny_clip(attention_dropout=0.3).double().train()
    batch, loss = batch_of(), MultiPositiveContrastiveLoss()
    torch.manual_seed(11)
    whole = _in_micro_batches_with_graph(encoder, loss, batch, micro_batch)
    whole.backward()
    after = torch.get_rng_state()
    reference = gradients(encoder)
    torch.manual_seed(11)
    output = step_of(encoder, loss, micro_batch)(batch)
    assert float(output["loss"]) == pytest.approx(float(whole.detach()), rel=1e-12)
    assert_equal(gradients(encoder), reference)
    assert torch.equal(torch.get_rng_state(), after)  # a replay takes no numbers of its own
    torch.manual_seed(12)
    assert float(step_of(encoder, loss, micro_batch)(batch)["loss"]) != float(output["loss"])  # dropout was really on


def test_micro_batches_of_a_locked_tower() -> None:
    encoder = make_tiny_clip().double().train()
    encoder.lock("text")
    batch, loss = batch_of(), CLIPContrastiveLoss()
    step_of(encoder, loss, None)(batch)
    reference = gradients(encoder)
    step_of(encoder, loss, 3)(batch)
    mine = gradients(encoder)
    assert not any(name.startswith("text_") for name in mine)
    assert_equal(mine, reference)


def test_a_scaled_backward_scales_every_gradient_alike() -> None:
    """What a GradScaler does for float16."""
    encoder = make_tiny_clip().double().train()
    batch, loss = batch_of(), CLIPContrastiveLoss()
    step_of(encoder, loss, 3)(batch)
    reference = {name: value * 1024 for name, value in gradients(encoder).items()}
    scaled = step_of(encoder, loss, 3)
    scaled.backward_scale = lambda value: value * 1024
    output = scaled(batch)
    assert_equal(gradients(encoder), reference)
    assert float(output["loss"]) < 10  # the loss that is reported is not scaled


def test_micro_batches_hold_one_micro_batches_graph_at_a_time() -> None:
    """The point of it: how many images' activations are alive at once."""
    encoder = make_tiny_clip().double().train()
    batch = batch_of()
    seen: list[tuple[int, bool]] = []
    plain = encoder.encode_image

    def watched(pixels: Tensor) -> Tensor:
        seen.append((len(pixels), torch.is_grad_enabled()))
        return plain(pixels)

    step = step_of(encoder, CLIPContrastiveLoss(), 3)
    step.encode_image = watched
    step(batch)
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


def _clip(_: Path) -> DualEncoder:
    return make_tiny_clip()


def _vision_text(folder: Path) -> DualEncoder:
    path = save_vision_text(folder / "joined", folder / "parts")
    return load_encoder(ModelSettings(model_name=str(path)))


def _siglip(folder: Path) -> DualEncoder:
    return load_encoder(ModelSettings(model_name=str(save_siglip(folder / "siglip"))))


@pytest.mark.parametrize("build", [_clip, _vision_text, _siglip])
@pytest.mark.parametrize("loss", [CLIPContrastiveLoss(), MultiPositiveContrastiveLoss()])
def test_the_lean_batch_equals_the_plain_one(
    tiny_data: TinyData, tmp_path: Path, build: Callable[[Path], DualEncoder], loss: Loss
) -> None:
    """Padding to the longest and encoding equal captions once change nothing: loss and every gradient."""
    encoder = build(tmp_path).double().train()
    config = CLIPFinetuningConfig(
        model_name="tiny", image_resolution=32, max_sequence_length=min(77, encoder.text_length), num_workers=0
    )
    dataset = CLIPDataset(tiny_data.pairs(), encoder.processor, config)
    rows = list(range(len(dataset)))

    plain = collate_fn([dataset[row] for row in rows])
    images = encoder.encode_image(plain["pixel_values"].double())
    texts = encoder.encode_text(plain["input_ids"], plain["attention_mask"])
    groups = torch.tensor([dataset.texts.index(caption) for caption in plain["captions"]])
    naive = loss(images, texts, group_ids=groups, logit_scale=encoder.logit_scale)["loss"]
    naive.backward()
    reference = gradients(encoder)

    batch = PairCollator(dataset)([dataset.fetch(row) for row in rows])
    distinct, length = batch["input_ids"].shape
    assert distinct == len(set(plain["captions"])) < len(rows)
    assert batch["pixels"].dtype == torch.uint8
    if not encoder.is_siglip:
        assert length < encoder.text_length == plain["input_ids"].shape[1]
    spec = dataset.image_transform.spec
    step = step_of(encoder, loss, None)
    # float32 as the plain path normalises; the difference that is tested is elsewhere
    step.encode_image = lambda pixels: encoder.encode_image(spec.normalise(pixels).double())
    output = step(batch)
    assert float(output["loss"]) == pytest.approx(float(naive.detach()), rel=1e-9)
    assert_equal(gradients(encoder), reference)
