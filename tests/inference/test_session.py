"""A session: a loaded model that encodes, compares and classifies whatever images come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import domainclip
from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import DataError, ImageError
from domainclip.evaluation.zero_shot import ZeroShotEvaluator
from domainclip.inference import ModelSession
from domainclip.pipelines import CLIPFinetuningController
from domainclip.pipelines.assemble import write_model
from domainclip.resolve import resolve_for_inference
from domainclip.retrieval import ImageTextRetrieval
from tiny_data import TinyData

pytestmark = pytest.mark.slow

Load = Callable[..., ModelSession]


@pytest.fixture
def load() -> Load:
    def made(**values: object) -> ModelSession:
        given = {"model_name": "tiny", "mixed_precision": False, "device": "cpu", **values}
        return ModelSession.from_pretrained(resolve_for_inference(CLIPFinetuningConfig(**given)), Console(quiet=True))

    return made


def test_files_opened_images_and_arrays_are_the_same_images(load: Load, tiny_data: TinyData) -> None:
    session = load()
    path = tiny_data.pairs("test")[0].image_path
    opened = Image.open(path)
    embeds = session.encode_images([path, str(path), opened, np.asarray(opened.convert("RGB"))])
    assert embeds.shape == (4, 32)
    torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(4))
    for row in embeds[1:]:
        torch.testing.assert_close(row, embeds[0])


def test_what_is_no_image_or_no_text_is_refused(load: Load, tmp_path: Path) -> None:
    session = load()
    with pytest.raises(ImageError):
        session.encode_images([tmp_path / "nowhere.png"])
    with pytest.raises(ImageError):
        session.encode_images([np.zeros((2, 3, 4, 5), np.uint8)])
    assert session.encode_images(np.zeros((2, 8, 8, 3), np.uint8)).shape == (2, 32)
    with pytest.raises(DataError):
        session.encode_images([])
    assert torch.equal(session.encode_texts("one text"), session.encode_texts(["one text"]))
    with pytest.raises(TypeError):
        session.encode_texts(["a text", 3])
    with pytest.raises(DataError):
        session.predict([np.zeros((8, 8, 3), np.uint8)], [])


def test_a_class_is_what_its_prompts_say(load: Load, tiny_data: TinyData) -> None:
    """Against the formula: prompts averaged, cosines divided by the temperature, a softmax over the classes."""
    templates = ["a photo of {}.", "{} seen from above"]
    session = load(prompt_templates=templates)
    paths, labels = [pair.image_path for pair in tiny_data.pairs("test")], ["sky", "brick", "grass"]
    means = [
        torch.nn.functional.normalize(session.encode_texts([t.format(label) for t in templates]).mean(0), dim=0)
        for label in labels
    ]
    logits = session.encode_images(paths) @ torch.stack(means).T / session.temperature
    expected = torch.softmax(logits.double(), dim=1)
    for prediction, wanted in zip(session.predict(paths, labels), expected, strict=True):
        row = prediction.probabilities
        assert (prediction.label, prediction.probability) == next(iter(row.items()))
        assert list(row.values()) == sorted(row.values(), reverse=True)
        assert sum(row.values()) == pytest.approx(1)
        assert [row[label] for label in labels] == pytest.approx(wanted.tolist(), rel=1e-5)


def test_a_domains_names_describe_its_classes(load: Load, tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("name: own\nprompts:\n  templates: ['{}']\n  class_names:\n    a: [blue sky]\n")
    own, plain = load(domain=str(tmp_path / "own.yaml")), load(prompt_templates=["{}"])
    path = tiny_data.pairs("test")[0].image_path
    found, other = own.predict(path, ["a", "brick"]), plain.predict(path, ["blue sky", "brick"])
    assert found.probabilities["a"] == pytest.approx(other.probabilities["blue sky"])


def test_a_sigmoid_model_gives_each_class_a_probability_of_its_own(load: Load, zoo: dict, tiny_data: TinyData) -> None:
    session = load(model_name=str(zoo["siglip"]))
    cosines = torch.tensor([[0.5, -0.25]])
    scale, bias = session.encoder.logit_scale.exp(), session.encoder.logit_bias
    expected = torch.sigmoid(cosines.double() * scale.double() + bias.double())
    torch.testing.assert_close(session.probabilities(cosines), expected)


def test_sessions_and_controllers_serve_evaluators_and_retrieval(load: Load, tiny_data: TinyData) -> None:
    session = load()
    controller = CLIPFinetuningController(session.config, Console(quiet=True))
    controller.setup()
    pairs = tiny_data.pairs("test")
    texts, image = sorted({pair.label or "" for pair in pairs}), pairs[0].image_path
    evaluator = ZeroShotEvaluator(pairs)
    assert evaluator(session) == evaluator(session.engine()) == evaluator(controller)
    hits = [ImageTextRetrieval(one).retrieve_text(image, texts, top_k=2) for one in (session, controller)]
    assert [hit.item for hit in hits[0]] == [hit.item for hit in hits[1]]
    similarity = session.similarity([image], texts)[0]
    assert [hit.score for hit in hits[0]] == pytest.approx(sorted(similarity.tolist(), reverse=True)[:2])
    assert torch.equal(controller.compute_similarity(text=texts, images=[Image.open(image)])[0], similarity)


def test_a_session_knows_no_training() -> None:
    """Inference can be shipped without what trains."""
    import subprocess
    import sys

    check = "import sys, domainclip.inference.session; print([m for m in sys.modules if m.startswith('domainclip.')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert "domainclip.inference.session" in done.stdout
    for room in ("training", "losses", "evaluation", "pipelines", "reports"):
        assert f"'domainclip.{room}" not in done.stdout


def test_a_folder_is_enough_to_load_a_model(tiny_data: TinyData, tmp_path: Path) -> None:
    """With the domain that it was trained in."""
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", device="cpu", domain="industrial"))
    controller.setup()
    assert controller.model is not None
    write_model(controller.session, tmp_path)
    image = tiny_data.pairs("test")[0].image_path
    expected = controller.session.predict(image, ["brick", "sky"])
    for folder in (tmp_path / "model", str(tmp_path / "model")):
        session = domainclip.ModelSession.from_pretrained(folder, Console(quiet=True))
        assert session.domain.name == "industrial"
        found = session.predict(image, ["brick", "sky"])
        assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
