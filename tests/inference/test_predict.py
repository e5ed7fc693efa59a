"""Classes with probabilities, from a model that knows its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, ModelLoadError
from domainclip.inference import ModelSession
from domainclip.inference.model_record import RECORD_FILE, ModelRecord
from domainclip.resolve import resolve_for_inference
from tiny_data import TinyData

CLASSES = ("brick", "grass", "sky")


@pytest.fixture(scope="module")
def session() -> ModelSession:
    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", domain="industrial")
    return ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))


@pytest.fixture(scope="module")
def saved(session: ModelSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    session.record = ModelRecord(CLASSES, 0.05)
    folder = tmp_path_factory.mktemp("saved") / "model"
    session.save(folder)
    session.save(folder)  # a model is replaced
    return folder


def test_a_saved_model_comes_back_with_classes_temperature_and_domain(
    session: ModelSession, saved: Path, tiny_data: TinyData
) -> None:
    again = ModelSession.from_pretrained(saved, Console(quiet=True))
    assert (again.record, again.domain.name) == (ModelRecord(CLASSES, 0.05), "industrial")
    image = tiny_data.pairs("test")[0].image_path
    found = again.predict(image)
    assert set(found.probabilities) == set(CLASSES)
    # At the temperature of the record, not the model's own.
    cosines = again.encode_image(image) @ again.classifier(CLASSES).weights.T
    wanted = dict(zip(CLASSES, torch.softmax(cosines[0].double() / 0.05, 0).tolist(), strict=True))
    assert found.probabilities == pytest.approx(wanted)
    torch.testing.assert_close(again.encode_text("a sky"), session.encode_text(["a sky"]))
    torch.testing.assert_close(again.encode_image(image), session.encode_image([image]))


def test_one_image_one_prediction_and_several_a_list(saved: Path, tiny_data: TinyData) -> None:
    model = ModelSession.from_pretrained(saved, Console(quiet=True))
    paths = [pair.image_path for pair in tiny_data.pairs("test")]
    found = model.predict(paths, top_k=2)
    assert [model.predict(path, top_k=2).label for path in paths] == [each.label for each in found]
    for each in found:
        assert len(each.probabilities) == 2
        assert each.probability == max(each.probabilities.values())
        assert each.label == next(iter(each.probabilities))


def test_an_unsure_model_says_so(saved: Path, tiny_data: TinyData) -> None:
    model = ModelSession.from_pretrained(saved, Console(quiet=True))
    image = tiny_data.pairs("test")[0].image_path
    sure = model.predict(image)
    assert model.predict(image, threshold=sure.probability).label == sure.label
    unsure = model.predict(image, threshold=min(1.0, sure.probability + 1e-6))
    assert unsure.label is None
    assert unsure.probabilities == pytest.approx(sure.probabilities)


def test_wrong_values_are_refused(saved: Path, tiny_data: TinyData) -> None:
    model = ModelSession.from_pretrained(saved, Console(quiet=True))
    image = tiny_data.pairs("test")[0].image_path
    for values, words in (
        ({"top_k": 0}, "top_k must be in range 1 to 3"),
        ({"top_k": 4}, "top_k must be in range 1 to 3"),
        ({"threshold": 1.5}, "from 0 to 1"),
        ({"labels": ["a", ""]}, "is empty"),
    ):
        with pytest.raises(ConfigurationError, match=words):
            model.predict(image, **values)  # type: ignore[call-overload]
    bare = ModelSession.from_pretrained("tiny", Console(quiet=True))
    with pytest.raises(ConfigurationError, match="says nothing of classes"):
        bare.predict(image)


def test_a_folder_of_something_else_is_not_replaced(session: ModelSession, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="something else than a model"):
        session.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '{"classes": "ab", "temperature": 1}', '{"classes": [], "temperature": -1}']
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / RECORD_FILE).write_text(content)
    with pytest.raises(ModelLoadError, match=RECORD_FILE):
        ModelRecord.read(tmp_path)


def test_a_model_of_others_has_no_record(tmp_path: Path) -> None:
    assert ModelRecord.read(tmp_path) == ModelRecord()


def test_the_fingerprint_is_of_weights_and_preparation(session: ModelSession, saved: Path) -> None:
    def fingerprint(**values: object) -> str:
        config = CLIPFinetuningConfig(model_name=str(saved), device="cpu", **values)
        return ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True)).fingerprint()

    same = fingerprint()
    assert same == fingerprint()
    assert same != fingerprint(domain="medical")
    assert same != fingerprint(image_resolution=64)
    model = ModelSession.from_pretrained(saved, Console(quiet=True))
    model.as_loaded = False
    of_weights = model.fingerprint()
    with torch.no_grad():
        model.encoder.logit_scale.add_(1)
    assert model.fingerprint() != of_weights


def test_files_that_cannot_be_read_stop_nothing(session: ModelSession, tiny_data: TinyData, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    good = [pair.image_path for pair in tiny_data.pairs("train")]
    paths = [*good[:5], tmp_path / "broken.png", *good[5:], tmp_path / "gone.png"]
    for size in (1, 4, 64):
        batches = list(session.engine(size).encode_files(paths, digests=True))
        problems = [problem for batch in batches for problem in batch.problems]
        assert [bool(problem) for problem in problems] == [path not in good for path in paths]
        embeds = torch.cat([batch.embeddings for batch in batches])
        torch.testing.assert_close(embeds, session.encode_images(good), atol=1e-5, rtol=0)
        assert len({digest for batch in batches for digest in batch.digests if digest}) == len(good) + 1
    assert list(session.engine().encode_files([])) == []
