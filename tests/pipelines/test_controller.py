"""The controller: what a user's own script calls."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score
from transformers import AutoModel

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data.dataset import CLIPDataset
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError, ModelNotInitializedError
from domainclip.models import make_tiny_clip
from tiny_data import TinyData

pytestmark = pytest.mark.slow

VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "batch_size": 6,
    "num_epochs": 2,
    "learning_rate": 1e-3,
    "num_workers": 0,
    "mixed_precision": False,
    "device": "cpu",
    "logging_steps": 1,
}


def controller(**values: Any) -> CLIPFinetuningController:
    return CLIPFinetuningController(CLIPFinetuningConfig(**{**VALUES, **values}), Console(quiet=True))


@pytest.fixture
def ready() -> CLIPFinetuningController:
    made = controller()
    made.setup()
    return made


@pytest.fixture
def images(tiny_data: TinyData) -> list[Image.Image]:
    return [Image.open(pair.image_path) for pair in tiny_data.pairs("test")[:3]]


def test_before_setup_everything_says_so(images: list[Image.Image], tiny_data: TinyData) -> None:
    fresh = controller()
    assert fresh.model is None
    assert fresh.processor is None
    assert fresh.get_model_state()["status"] == "not_initialized"
    for use in (
        lambda: fresh.encode_text(["moon"]),
        lambda: fresh.encode_image(images),
        lambda: fresh.compute_similarity(text=["moon"], images=images),
        lambda: fresh.fine_tune(tiny_data.pairs()),
        lambda: fresh.evaluate_on_domain(tiny_data.pairs()),
        lambda: fresh.device,
    ):
        with pytest.raises(RuntimeError, match=r"^Model not initialized"):
            use()
        with pytest.raises(ModelNotInitializedError):
            use()


def test_after_setup_it_says_what_it_is(ready: CLIPFinetuningController) -> None:
    state = ready.get_model_state()
    assert state["status"] == "ready"
    assert state["device_type"] == ready.device.type == "cpu"
    assert isinstance(state["is_apple_silicon"], bool)
    assert state["parameters"] == sum(p.numel() for p in make_tiny_clip().parameters())
    assert ready.determine_batch_size() == 6
    assert ready.processor is not None
    unset = controller(batch_size=None)
    unset.setup()
    assert unset.determine_batch_size() > 0


def test_embeddings_and_similarities(ready: CLIPFinetuningController, images: list[Image.Image]) -> None:
    texts = ["a texture of brick", "sky"]
    x, y = ready.encode_image(images), ready.encode_text(texts)
    assert x.shape == (3, 32)
    assert y.shape == (2, 32)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(3))
    similarity = ready.compute_similarity(text=texts, images=images)
    assert similarity.shape == (3, 2)
    torch.testing.assert_close(similarity, torch.nn.functional.cosine_similarity(x[:, None], y[None], dim=-1))
    batch = ready.processor(text=texts, images=images)
    with torch.no_grad():
        output = ready.model.model(**batch)  # plain transformers
    # its own resize is Pillow's; ours may differ by a grey level
    torch.testing.assert_close(x, output.image_embeds, rtol=0, atol=0.02)
    torch.testing.assert_close(y, output.text_embeds, rtol=1e-5, atol=1e-6)


def test_fine_tuning_and_evaluating(ready: CLIPFinetuningController, tiny_data: TinyData, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in ready.model.state_dict().items()}
    result = ready.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), output_path=tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    trained = [row["loss"] for row in rows if "loss" in row]
    assert result["train_loss"] == pytest.approx(sum(trained) / len(trained))
    assert result["training_time"] > 0
    assert result["steps"] == 6
    assert ready.get_model_state()["status"] == "trained"
    assert not all(torch.equal(value, before[name]) for name, value in ready.model.state_dict().items())
    saved = AutoModel.from_pretrained(tmp_path / "out" / "model").state_dict()
    for name, value in ready.model.model.state_dict().items():  # the best weights
        assert torch.equal(value, saved[name])

    metrics = ready.evaluate_on_domain(tiny_data.pairs("test"), ["accuracy", "f1_score"])
    assert list(metrics) == ["accuracy", "f1_score"]
    every = ready.evaluate_on_domain(tiny_data.pairs("test"))
    assert {"accuracy", "f1_score", "i2t_R@1", "t2i_R@1"} <= every.keys()
    with pytest.raises(ConfigurationError, match=r"^Invalid metric 'accuray'.*accuracy"):
        ready.evaluate_on_domain(tiny_data.pairs("test"), ["accuray"])
    with pytest.raises(ValueError, match=r"^Invalid metric"):
        ready.evaluate_on_domain(tiny_data.pairs("test"), ["bleu"])


def test_accuracy_and_f1_are_scikit_learns(ready: CLIPFinetuningController, tiny_data: TinyData) -> None:
    """With one prompt per class, from the embeddings alone."""
    pairs = tiny_data.pairs("test")
    prompted = controller(prompt_templates=["a texture of {}."])
    prompted.setup()
    labels = sorted({pair.label for pair in pairs})
    scores = prompted.compute_similarity(
        text=[f"a texture of {label}." for label in labels], images=[Image.open(p.image_path) for p in pairs]
    )
    predicted = [labels[int(row.argmax())] for row in scores]
    truth = [pair.label for pair in pairs]
    metrics = prompted.evaluate_on_domain(pairs, ["accuracy", "f1_score"])
    assert metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert metrics["f1_score"] == pytest.approx(f1_score(truth, predicted, labels=labels, average="macro"))


def test_settings_changed_after_a_run_hold_for_the_next(
    ready: CLIPFinetuningController, tiny_data: TinyData, tmp_path: Path
) -> None:
    ready.fine_tune(tiny_data.pairs(), output_path=tmp_path / "a")
    ready.config.num_epochs = 1
    assert ready.fine_tune(tiny_data.pairs(), output_path=tmp_path / "b")["steps"] == 3


def test_a_data_set_of_the_users_own_is_used_as_it_is(
    ready: CLIPFinetuningController, tiny_data: TinyData, tmp_path: Path
) -> None:
    config = CLIPFinetuningConfig(**VALUES, image_resolution=32)
    dataset = CLIPDataset(tiny_data.pairs(), ready.processor, config)
    result = ready.fine_tune(dataset, output_path=tmp_path)
    assert result["steps"] == 6
    assert result["best"] is None  # nothing was validated: the last weights are kept


def test_an_unknown_loss_is_refused_with_the_known_ones() -> None:
    wrong = controller(loss_type="contrastve")
    with pytest.raises(ConfigurationError, match=r"^Invalid loss type 'contrastve'.*contrastive.*multi_positive"):
        wrong.setup()


def test_data_without_contrast_are_refused(
    ready: CLIPFinetuningController, tiny_data: TinyData, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="No valid image-text pairs"):
        ready.fine_tune(tiny_data.pairs()[:1], output_path=tmp_path)
    sky = [pair for pair in tiny_data.pairs() if pair.label == "sky"]
    one_caption = [ImageTextPair(pair.image_path, "the sky", pair.label) for pair in sky]
    with pytest.raises(DataError, match=r"same caption.*nothing to tell apart"):
        ready.fine_tune(one_caption, output_path=tmp_path)
    ready.config.positives = "label"
    with pytest.raises(DataError, match=r"same label.*nothing to tell apart"):
        ready.fine_tune(sky, output_path=tmp_path)


def test_a_finished_run_leaves_nothing_behind(tiny_data, tmp_path, monkeypatch) -> None:
    """Optimizer and decoded images are freed at once: many runs in one process need the memory of one."""
    from domainclip.training import assemble as module

    seen = []

    class Watched(module.Trainer):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            seen.append(weakref.ref(self))

    monkeypatch.setattr(module, "Trainer", Watched)
    gc.disable()
    try:
        controller = CLIPFinetuningController(
            CLIPFinetuningConfig(model_name="tiny", batch_size=6, max_steps=2, num_workers=0, mixed_precision=False)
        )
        controller.setup()
        controller.fine_tune(tiny_data.pairs(), tiny_data.pairs("val"), tmp_path)
    finally:
        gc.enable()
    assert [reference() for reference in seen] == [None]
