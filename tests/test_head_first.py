"""Heads before towers: against the encoder itself, the evaluator, scikit-learn, and over kills and resumptions."""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from conftest import CommandResult, TinyData
from domainclip.config import CLIPFinetuningConfig, DataFacts, ModelFacts, resolve
from domainclip.config.slices import ModelSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.data.image_spec import ImageSpec
from domainclip.data.records import ImageTextPair
from domainclip.data.transforms import ImageTransform
from domainclip.evaluation.prompts import class_prompts, classifier_weights
from domainclip.losses import build_loss
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.training import Validation
from domainclip.training.head_draws import ClassPrompts, PairDraws
from domainclip.training.head_features import FeatureReader
from domainclip.training.head_first import HeadFirst, begin_with_heads
from domainclip.training.metrics_log import read_metrics
from model_zoo import save_siglip, save_vision_text
from training_setup import make_trainer, same, train_until, weights

CPU = torch.device("cpu")
VALUES: dict[str, Any] = {
    "model_name": "tiny", "loss_type": "multi_positive", "image_resolution": 32, "num_workers": 0,
    "head_first_steps": 30, "head_first_learning_rate": 1e-2, "class_balance": False,
}  # fmt: skip
Make = Callable[..., DualEncoder]


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


def dataset(pairs: Sequence[ImageTextPair], encoder: DualEncoder, augment: bool = True, **values: Any) -> CLIPDataset:
    config = CLIPFinetuningConfig(**{**VALUES, **values})
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    return CLIPDataset(pairs, encoder.processor, config, ImageTransform(config, augment, spec))


def head_first(
    encoder: DualEncoder, pairs: Sequence[ImageTextPair], val: Sequence[ImageTextPair] = (), **values: Any
) -> HeadFirst:
    config = CLIPFinetuningConfig(**{**VALUES, **values})
    data = dataset(pairs, encoder, **values)
    labels = sorted({pair.label for pair in pairs if pair.label})
    return HeadFirst(
        encoder, build_loss(config), data, config, config.seed, CPU, contextlib.nullcontext, 4,
        dataset(val, encoder, False, **values) if val else None, class_prompts(labels) if len(labels) > 1 else None,
    )  # fmt: skip


def embed_rows(encoder: DualEncoder, data: CLIPDataset, keys: Sequence[Any]) -> torch.Tensor:
    """One picture at a time, as the encoder itself embeds it."""
    spec = data.image_transform.spec
    with torch.no_grad():
        return torch.cat([encoder.eval().encode_image(spec.normalise(data.pixels(key)[None])) for key in keys])


# --- features ---


@pytest.mark.parametrize("kind", ["clip", "siglip", "mobilenet"])
def test_features_and_head_make_the_encoders_embeddings(kind: str, zoo: dict[str, Path], tiny_data: TinyData) -> None:
    encoder = encoder_of(kind, zoo)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()
    encoder.frozen_batch_norm = False
    plain, augmented = (dataset(tiny_data.pairs(), encoder, augment) for augment in (False, True))
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 5)
    rows = list(range(18))
    found = reader.pictures(augmented, rows, views=2)
    texts = reader.texts([ids.tolist() for ids in augmented.tokens])
    assert encoder.training and same(before, dict(encoder.state_dict()))  # batch norm's statistics among them
    assert (found.views, found.rows, len(found.inputs)) == (3, rows, 54)
    by_itself = [embed_rows(encoder, plain, rows)]
    by_itself += [embed_rows(encoder, augmented, [(-1 - view, row) for row in rows]) for view in range(2)]
    torch.testing.assert_close(found.inputs.embed().detach(), torch.cat(by_itself), rtol=1e-4, atol=1e-5)
    tokens = encoder.processor.tokenize(augmented.texts)
    with torch.no_grad():
        expected = encoder.encode_text(**tokens)
    torch.testing.assert_close(texts.embed().detach(), expected, rtol=1e-4, atol=1e-5)


def test_pictures_that_cannot_be_read_are_left_out(tiny_data: TinyData, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    pairs = tiny_data.pairs()
    pairs[2] = ImageTextPair(broken, "a texture of brick", "brick")
    first = head_first(make_tiny_clip(), pairs)
    told = first()
    assert told["rows"] == 17 and list(told["bad_pictures"]) == [str(broken)]
    unreadable = [ImageTextPair(broken, text, None) for text in ("one", "two")]
    assert head_first(make_tiny_clip(), unreadable)()["skipped"] == "fewer than two pictures can be read"


# --- what is learned ---


@pytest.mark.parametrize("kind", ["clip", "siglip", "mobilenet"])
def test_only_heads_and_scale_move_and_the_encoder_has_them(
    kind: str, zoo: dict[str, Path], tiny_data: TinyData
) -> None:
    encoder = encoder_of(kind, zoo)
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    told = head_first(encoder, tiny_data.pairs())()
    after = encoder.model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    heads = ("visual_projection.", "text_projection.")
    if kind == "siglip":
        heads = ("vision_model.head.mlp.fc2.", "text_model.head.")
    assert all(any(name.startswith(head) for name in moved) for head in heads)
    assert all(name.startswith((*heads, "logit_")) for name in moved)
    assert (told["rows"], told["steps"], told["kept_step"], told["loss"]) == (18, 30, 30, None)
    assert all(p.grad is None for p in encoder.parameters())
    # The features were taken of towers that have not moved: old features through new heads are the new embeddings.
    data = dataset(tiny_data.pairs("val"), encoder, False)
    again = FeatureReader(encoder, CPU, contextlib.nullcontext, 64).pictures(data, range(6))
    torch.testing.assert_close(again.inputs.embed().detach(), embed_rows(encoder, data, range(6)), rtol=1e-4, atol=1e-5)


def test_it_tells_apart_what_a_logistic_regression_does(tiny_data: TinyData) -> None:
    """On features of towers that know nothing: the test rows' classes, by sentences, as scikit-learn by weights."""
    encoder = make_tiny_clip()
    pairs, held_out = tiny_data.pairs(), tiny_data.pairs("test")
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 64)
    read = [reader.pictures(dataset(rows, encoder, False), range(len(rows))).inputs for rows in (pairs, held_out)]
    train, test = (inputs.features.numpy() for inputs in read)
    probe = LogisticRegression(max_iter=5000).fit(train, [pair.label for pair in pairs])
    wanted = [pair.label for pair in held_out]
    head_first(encoder, pairs, tiny_data.pairs("val"), head_first_steps=200)()
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
    def bare(split: str) -> list[ImageTextPair]:
        return [ImageTextPair(pair.image_path, pair.caption, None) for pair in tiny_data.pairs(split)]

    encoder = make_tiny_clip()
    told = head_first(encoder, bare("train"), bare("val"))()
    assert told["loss"] < told["loss_before"]
    assert head_first(make_tiny_clip(), bare("train"))()["kept_step"] == 30  # nothing says to stop


def test_it_stops_where_validation_gets_worse(tiny_data: TinyData) -> None:
    """Validation rows with the captions of others: learning only hurts, and the start is kept."""
    train, pairs = (
        [ImageTextPair(p.image_path, p.caption) for p in tiny_data.pairs(name)] for name in ("train", "val")
    )
    wrong = [ImageTextPair(p.image_path, other.caption) for p, other in zip(pairs, pairs[1:] + pairs[:1], strict=True)]
    encoder = make_tiny_clip()
    head_first(encoder, train, pairs, head_first_steps=60)()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    told = head_first(encoder, train, wrong, head_first_steps=60, head_first_learning_rate=1e-3)()
    assert told["kept_step"] == 0 and told["steps"] < 60
    assert same(before, dict(encoder.state_dict()))


@pytest.mark.parametrize(
    ("shares", "kept"), [([0.4, 0.9, 0.7, 0.6], 2), ([0.4, 0.8, 0.3, 0.9], 3), ([0.9, 0.2, 0.3, 0.4], 0)]
)
def test_the_latest_step_near_the_best_is_kept(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, shares: list[float], kept: int
) -> None:
    """Of six rows .9 has a standard error of .12: .7 is as good, .6 is not. The loss, which rises, has no say."""
    pairs = tiny_data.pairs("val")
    assert len(pairs) == 6
    values = iter(enumerate(shares))

    def judge(*_: Any) -> tuple[float, float]:
        number, share = next(values)
        return 1.0 + number, share

    heads = head_first(make_tiny_clip(), tiny_data.pairs(), pairs, head_first_steps=3)
    monkeypatch.setattr(heads, "_judge", judge)
    assert heads()["kept_step"] == kept and next(values, None) is None


@pytest.mark.parametrize("loss_type", ["contrastive", "sigmoid", "hard_negative", "multi_resolution", "combined"])
def test_every_kind_of_objective_goes_with_it(loss_type: str, tiny_data: TinyData) -> None:
    values: dict[str, Any] = {"loss_type": loss_type, "head_first_steps": 12}
    if loss_type == "combined":
        values |= {"objectives": {"contrastive": 1, "sigmoid": 0.5}, "loss_balancing": "uncertainty"}
    first = head_first(make_tiny_clip(), tiny_data.pairs(), tiny_data.pairs("val"), **values)
    before = copy.deepcopy(first.objective.state_dict())
    told = first()
    assert told["loss"] < told["loss_before"]
    after = first.objective.state_dict()
    assert all(
        torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else value == after[name]
        for name, value in before.items()
    )


# --- locks and adapters ---


def test_a_locked_tower_keeps_its_head(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip()
    encoder.lock("text")
    before = encoder.model.text_projection.weight.clone()
    first = head_first(encoder, tiny_data.pairs(), tiny_data.pairs("val"))
    assert {name for name, _ in first.trained_parameters()} == {"logit_scale", "visual_projection.weight"}
    first()
    assert torch.equal(encoder.model.text_projection.weight, before)
    encoder.lock("image")
    assert head_first(encoder, tiny_data.pairs())() == {"skipped": "both projections are locked", "bad_pictures": {}}


@pytest.mark.parametrize("targets", [None, ["q_proj", "visual_projection"]])
def test_adapters_of_towers_stay_and_those_of_heads_learn(targets: list[str] | None, tiny_data: TinyData) -> None:
    pytest.importorskip("peft")
    encoder = make_tiny_clip()
    encoder.attach_adapters(CLIPFinetuningConfig(lora_r=2, target_modules=targets), 0)
    first = head_first(encoder, tiny_data.pairs(), tiny_data.pairs("val"))
    names = {name for name, _ in first.trained_parameters()}
    if targets is None:
        assert names == {"logit_scale", "visual_projection.weight", "text_projection.weight"}
    else:
        adapters = {f"visual_projection.lora_{part}.default.weight" for part in "AB"}
        assert names == {"logit_scale", "text_projection.weight", *adapters}
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    told = first()
    after = encoder.model.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} <= names
    assert told["loss"] < told["loss_before"]


# --- chance ---


def test_it_depends_on_the_seed_alone(tiny_data: TinyData) -> None:
    def once(state: int, seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(state)
        encoder = make_tiny_clip(attention_dropout=0.1)
        random = torch.get_rng_state()
        head_first(encoder, tiny_data.pairs(), seed=seed, head_first_steps=5)()
        assert torch.equal(torch.get_rng_state(), random)
        return dict(encoder.state_dict())

    assert same(once(1, 42), once(2, 42))
    assert not same(once(1, 42), once(1, 43))


def test_classes_are_drawn_equally_often_where_that_is_asked(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip()
    pairs = [pair for pair in tiny_data.pairs() if pair.label == "brick"][:1]
    pairs += [pair for pair in tiny_data.pairs() if pair.label != "brick"]
    data = dataset(pairs, encoder)
    reader = FeatureReader(encoder, CPU, contextlib.nullcontext, 64)
    classes = ClassPrompts.read(reader, class_prompts(["brick", "grass", "sky"]), data)
    draws = PairDraws.read(reader, data, range(len(pairs)), 1, classes)
    generator = torch.Generator().manual_seed(0)
    seen: Counter[int] = Counter()
    for _ in range(300):
        seen.update(draws.draw(13, True, generator).classes.tolist())
    assert all(abs(seen[label] / 3900 - 1 / 3) < 0.04 for label in range(3))
    plain = draws.draw(13, False, generator)
    assert Counter(plain.classes.tolist()) == {0: 1, 1: 6, 2: 6}
    assert sorted((plain.pictures % 13).tolist()) == list(range(13))
    shown = {data.texts[text] for text in data.shown_texts(0)}
    assert shown == {pairs[0].caption}


# --- in a training ---


def with_heads(pairs: Sequence[ImageTextPair], val: Sequence[ImageTextPair], folder: Path, **values: Any) -> Any:
    trainer = make_trainer(pairs, folder, save_steps=1, **values)
    trainer.head_first = head_first(trainer.encoder, pairs, val, head_first_steps=6)
    return trainer


@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_killed_run_ends_as_a_whole_one(tiny_data: TinyData, tmp_path: Path, stop_at: int) -> None:
    """Before the first checkpoint the heads are trained again, after it they are not."""
    pairs, val = tiny_data.pairs(), tiny_data.pairs("val")
    whole = with_heads(pairs, val, tmp_path / "whole")
    whole.train()
    plain = make_trainer(pairs, tmp_path / "plain")
    plain.train()
    assert not same(weights(whole), weights(plain))
    broken = with_heads(pairs, val, tmp_path / "broken")
    train_until(broken, stop_at)
    torch.manual_seed(999)
    again = with_heads(pairs, val, tmp_path / "broken")
    calls: list[int] = []
    train_heads = again.head_first

    def counted() -> dict[str, Any]:
        calls.append(1)
        return train_heads()

    again.head_first = counted
    result = again.train(resume=True)
    assert result.resumed_from == stop_at and len(calls) == (stop_at == 0)
    assert same(weights(again), weights(whole))
    rows = read_metrics(tmp_path / "broken" / "metrics.jsonl")
    assert sum("head_first_rows" in row for row in rows) == 1
    assert {**result.head_first, "seconds": 0} == {**whole.state.head_first, "seconds": 0}


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        ([0.74, 0.7, 0.6], 0),
        ([0.82, 0.7, 0.7], 0),
        ([0.91, 0.7, 0.7], 1),
        ([0.7, 0.76, 0.74], 2),
        ([0.9, 0.85, 0.79], 2),
        ([0.81, 0.9, 0.85], 3),
    ],
)
def test_trained_towers_must_reach_what_the_heads_had(
    tiny_data: TinyData, tmp_path: Path, later: list[float], kept: int
) -> None:
    """The heads' model has .80; every validation has a standard error of .1, half of which may be missed."""
    values = iter([0.8, *later])

    def validate() -> Validation:
        return Validation({"acc": next(values)}, "acc", True, 0.1)

    trainer = with_heads(tiny_data.pairs(), (), tmp_path, validate=validate, eval_steps=1, num_epochs=1)
    result = trainer.train()
    assert result.steps == 3 and next(values, None) is None
    assert result.best["step"] == kept
    assert result.head_first["validation"] == 0.8


def test_a_run_goes_on_where_heads_are_left_out(tiny_data: TinyData, tmp_path: Path) -> None:
    trainer = make_trainer(
        tiny_data.pairs(), tmp_path, num_epochs=1, validate=lambda: Validation({"acc": 0.5}, "acc", True, 0.1)
    )
    trainer.head_first = lambda: {"skipped": "for a test", "bad_pictures": {}}  # type: ignore[assignment, return-value]
    result = trainer.train()
    assert result.best is not None and result.best["step"] == 3
    assert result.head_first == {"skipped": "for a test"}


def test_only_the_first_process_trains_the_heads(tiny_data: TinyData, tmp_path: Path) -> None:
    class Beside:
        """The second of two processes, as far as the heads are concerned: the first one's result, and its weights."""

        def __init__(self) -> None:
            self.shared: list[Any] = []

        def on_first(self, work: Callable[[], Any]) -> dict[str, Any]:
            return {"skipped": "by the first", "bad_pictures": {}}

        def broadcast_state(self, *modules: Any) -> None:
            self.shared += modules

    trainer = with_heads(tiny_data.pairs(), (), tmp_path)
    trainer.processes = Beside()
    before = weights(trainer)
    begin_with_heads(trainer, None)
    assert trainer.processes.shared == [trainer.encoder]
    assert same(before, weights(trainer))


# --- what is decided, and the command ---


@pytest.mark.parametrize(
    ("rows", "fresh", "imbalance", "expected"),
    [(300, False, 1.0, (True, False)), (4999, False, 40.0, (True, False)), (5000, False, 40.0, (False, False)),
     (90_000, True, 3.0, (True, False))],
)  # fmt: skip
def test_what_is_left_unset_is_decided_with_a_reason(
    rows: int, fresh: bool, imbalance: float, expected: tuple[bool, bool]
) -> None:
    model = ModelFacts(32, 77, False, "transformer", "transformer", 0.07, fresh_projections=fresh)
    data = DataFacts(rows, 0.5, 1.0, 3, False, 2, class_imbalance=imbalance)
    recipe, decisions = resolve(CLIPFinetuningConfig(), model, data)
    assert (recipe.head_first, recipe.class_balance) == expected
    reasons = {decision.key: decision.reason for decision in decisions}
    assert reasons["head_first"]
    assert ("class_balance" in reasons) == (recipe.head_first and imbalance > 20)
    assert not resolve(CLIPFinetuningConfig(head_first=False), model, data)[0].head_first


def test_a_run_says_what_the_heads_came_to(
    tiny_data: TinyData, tmp_path: Path, domainclip: Callable[..., CommandResult]
) -> None:
    folder = tmp_path / "run"
    result = domainclip(
        "train", "--data", tiny_data.folder, "--output", folder, "model_name=tiny", "num_epochs=1", "device=cpu",
        "head_first_steps=20",
    )  # fmt: skip
    assert result.exit_code == 0, result.err
    assert "Heads first: 18 rows" in result.out + result.err
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["step"] == 0]
    assert any("head_first_loss" in row for row in rows) and any("val_acc1" in row for row in rows)
