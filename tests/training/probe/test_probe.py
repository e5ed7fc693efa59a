"""Projections before towers: against the encoder itself, the evaluator, scikit-learn, and over kills and
resumptions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from domainclip.config.settings import ModelSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.data.records import ImageTextPair
from domainclip.inference.prompts import class_prompts, classifier_weights
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.training.probe.features import FeatureReader
from domainclip.training.probe.rows import ClassPrompts
from model_zoo import save_siglip, save_vision_text
from probe_cases import CPU, dataset, fitted, make_probe, read, surprise
from tiny_data import TinyData
from training_setup import same


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("zoo")
    return {
        "siglip": save_siglip(folder / "siglip"),
        "mobilenet": save_vision_text(folder / "mobilenet", folder / "parts", "mobilenet"),
    }


def encoder_of(kind: str, zoo: dict[str, Path]) -> DualEncoder:
    if kind == "clip":
        return make_tiny_clip(attention_dropout=0.1)
    return load_encoder(ModelSettings(model_name=str(zoo[kind])))


def embed_rows(encoder: DualEncoder, data: CLIPDataset, keys: Sequence[Any]) -> torch.Tensor:
    """One image at a time, as the encoder itself embeds it."""
    spec = data.image_transform.spec
    with torch.no_grad():
        return torch.cat([encoder.eval().encode_image(spec.normalise(data.pixels(key)[None])) for key in keys])


# --- features ---


@pytest.mark.parametrize("kind", ["clip", "siglip", "mobilenet"])
def test_features_and_projection_make_the_encoders_embeddings(
    kind: str, zoo: dict[str, Path], tiny_data: TinyData
) -> None:
    encoder = encoder_of(kind, zoo)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    encoder.frozen_batch_norm = False
    plain, augmented = (dataset(tiny_data.pairs(), encoder, augment) for augment in (False, True))
    augmented.expect_clean()
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 5)
    rows = list(range(18))
    found = reader.images(augmented, rows)
    texts = reader.texts([ids.tolist() for ids in augmented.tokens])
    assert encoder.training and same(before, dict(encoder.state_dict()))  # batch norm's statistics among them
    assert (found.rows, len(found.inputs)) == (rows, 18)
    by_itself = embed_rows(encoder, plain, rows)
    torch.testing.assert_close(found.inputs.embed().detach(), by_itself, rtol=1e-4, atol=1e-5)
    tokens = encoder.processor.tokenize(augmented.texts)
    with torch.no_grad():
        expected = encoder.encode_text(**tokens)
    torch.testing.assert_close(texts.embed().detach(), expected, rtol=1e-4, atol=1e-5)


def test_images_that_cannot_be_read_are_left_out(tiny_data: TinyData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    pairs = tiny_data.pairs()
    pairs[2] = ImageTextPair(broken, "a texture of brick", "brick")
    rows = read(make_probe(make_tiny_clip(), pairs)).rows
    assert len(rows) == 17 and list(rows.skipped) == [str(broken)]
    unreadable = [ImageTextPair(broken, text, None) for text in ("one", "two")]
    assert make_probe(make_tiny_clip(), unreadable).read() == "fewer than two images can be read"


# --- what is learned ---


@pytest.mark.parametrize("kind", ["clip", "siglip", "mobilenet"])
def test_only_projections_and_scale_move_and_the_encoder_has_them(
    kind: str, zoo: dict[str, Path], tiny_data: TinyData
) -> None:
    encoder = encoder_of(kind, zoo)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    fitted(make_probe(encoder, tiny_data.pairs()))
    after = encoder.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    projections = ("visual_projection.", "text_projection.")
    if kind == "siglip":
        projections = ("vision_model.head.mlp.fc2.", "text_model.head.")
    assert all(any(name.startswith(projection) for name in moved) for projection in projections)
    assert all(name.startswith((*projections, "logit_")) for name in moved)
    assert all(p.grad is None for p in encoder.parameters())
    # The features were taken of towers that have not moved: old features through new projections are the new
    # embeddings.
    data = dataset(tiny_data.pairs("val"), encoder, False)
    again = FeatureReader(encoder, CPU, contextlib.nullcontext, 64).images(data, range(6))
    torch.testing.assert_close(again.inputs.embed().detach(), embed_rows(encoder, data, range(6)), rtol=1e-4, atol=1e-5)


def test_it_tells_apart_what_a_logistic_regression_does(tiny_data: TinyData) -> None:
    """On features of towers that know nothing: the test rows' classes, by sentences, as scikit-learn by weights."""
    encoder = make_tiny_clip()
    pairs, held_out = tiny_data.pairs(), tiny_data.pairs("test")
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 64)
    read = [reader.images(dataset(rows, encoder, False), range(len(rows))).inputs for rows in (pairs, held_out)]
    train, test = (inputs.features.numpy() for inputs in read)
    probe = LogisticRegression(max_iter=5000).fit(train, [pair.label for pair in pairs])
    wanted = [pair.label for pair in held_out]
    fitted(make_probe(encoder, pairs, tiny_data.pairs("val"), probe_steps=200))
    prompts = class_prompts(sorted(set(wanted)))
    with torch.no_grad():
        made = classifier_weights(lambda texts: encoder.encode_text(**encoder.processor.tokenize(texts)), prompts)
        images = embed_rows(encoder, dataset(held_out, encoder, False), range(len(held_out)))
    answers = [list(prompts)[number] for number in (images @ made.T).argmax(1).tolist()]
    right = np.mean([a == b for a, b in zip(answers, wanted, strict=True)])
    assert right >= probe.score(test, wanted) - 1e-9
    assert right > 0.6


def test_class_loss_is_what_the_evaluator_and_scikit_learn_say(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip().eval()
    pairs = tiny_data.pairs()
    prompts = class_prompts(["brick", "grass", "sky"])
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 3)
    classes = ClassPrompts.read(reader, prompts, dataset(pairs, encoder))
    assert classes is not None
    with torch.no_grad():
        made = classifier_weights(lambda texts: encoder.encode_text(**encoder.processor.tokenize(texts)), prompts)
        torch.testing.assert_close(classes.weights(), made, rtol=1e-4, atol=1e-5)
        images = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
        labels = torch.tensor([0, 2, -1, 1, 1, 0, -1])
        loss = float(classes.loss(images, labels, encoder.logit_scale))
        cosines = torch.nn.functional.normalize(images, dim=-1) @ made.T
        chances = torch.softmax(cosines.double() * encoder.logit_scale.double().exp(), dim=1)
    known = labels >= 0
    assert loss == pytest.approx(log_loss(labels[known], chances[known], labels=[0, 1, 2]), rel=1e-4)
    assert classes.loss(images, torch.full((7,), -1), encoder.logit_scale).item() == 0
    assert ClassPrompts.read(reader, {"one": ["one"]}, dataset(pairs, encoder)) is None


def test_without_labels_the_captions_teach(tiny_data: TinyData) -> None:
    pairs = [ImageTextPair(pair.image_path, pair.caption, None) for pair in tiny_data.pairs()]
    reading = read(make_probe(make_tiny_clip(), pairs))
    before = surprise(reading)
    reading.fit(reading.training, reading.choose().effort)
    assert surprise(reading) < before


@pytest.mark.parametrize("loss_type", ["contrastive", "sigmoid", "hard_negative", "multi_resolution", "combined"])
def test_every_kind_of_objective_goes_with_it(loss_type: str, tiny_data: TinyData) -> None:
    values: dict[str, Any] = {"loss_type": loss_type, "probe_steps": 12}
    if loss_type == "combined":
        values |= {"objectives": {"contrastive": 1, "sigmoid": 0.5}, "loss_balancing": "uncertainty"}
    first = make_probe(make_tiny_clip(), tiny_data.pairs(), tiny_data.pairs("val"), **values)
    before = copy.deepcopy(first.objective.state_dict())
    reading = read(first)
    unfitted = surprise(reading)
    reading.fit(reading.training, reading.choose().effort)
    assert surprise(reading) < unfitted
    after = first.objective.state_dict()
    assert all(
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        for name, value in before.items()
    )
