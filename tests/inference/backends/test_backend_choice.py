"""The back end that is asked for is taken, or refused with its reason; ``auto`` takes the fastest that is admitted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import BackendError, ConfigurationError, MissingExtraError
from domainclip.inference import ModelSession
from domainclip.inference.backends.choice import choose_backend
from domainclip.inference.backends.encoder import BACKENDS, Precision, Towers
from domainclip.inference.backends.golden import drawn_images
from domainclip.inference.backends.model_graphs import ModelGraphs
from domainclip.inference.backends.names import parse_backend
from domainclip.models import load_encoder, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.resolve import resolve_for_inference


class Turned:
    """A back end that computes by torch, in a process of its own making: the towers are kept as they are."""

    extra = "turned"
    graphs = {"fp32": "fp32", "bf16": "fp32"}  # noqa: RUF012
    kept: Towers

    def __init__(self, package: str | None = None, error: float = 0.0) -> None:
        self.package, self.error = package, error
        self.converted = 0

    def missing(self) -> str | None:
        return self.package

    def precisions(self) -> tuple[Precision, ...]:
        return ("bf16", "fp32")

    def convert(self, towers: Towers, folder: Path, precision: Precision) -> None:
        self.kept = towers
        self.converted += 1
        (folder / "graph").write_text("kept")

    def load(self, folder: Path, precision: Precision) -> TurnedEncoder:
        assert (folder / "graph").is_file()
        return TurnedEncoder(self, precision)


class TurnedEncoder:
    name = "turned"

    def __init__(self, backend: Turned, precision: Precision) -> None:
        self.backend, self.precision = backend, precision

    def _turned(self, rows: torch.Tensor) -> np.ndarray:
        """bf16 turns them by twice as much."""
        error = self.backend.error * (2 if self.precision == "bf16" else 1)
        lengths = rows.norm(dim=1, keepdim=True)
        return (rows + error * lengths * torch.eye(rows.shape[1])[0]).numpy()

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._turned(self.backend.kept.image(torch.from_numpy(pixels)))

    def encode_tokens(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self._turned(self.backend.kept.text(torch.from_numpy(input_ids), torch.from_numpy(attention_mask)))


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> Turned:
    """The only back end beside torch."""
    backend = Turned()
    monkeypatch.setattr(BACKENDS, "_entries", {"turned": backend})
    return backend


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOMAINCLIP_CACHE", str(tmp_path / "cache"))
    save_encoder(make_tiny_clip(), tmp_path / "model")
    return tmp_path / "model"


def graphs_of(model: Path | str, said: list[str] | None = None) -> ModelGraphs:
    settings = ModelSettings(model_name=str(model))
    encoder = load_encoder(settings)
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    return ModelGraphs(encoder, settings, spec, torch.device("cpu"), (said if said is not None else []).append)


def test_it_is_converted_once_and_says_so(turned: Turned, model: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        choice = choose_backend(graphs_of(model, said), "turned")
        assert choice.reason.startswith("Back end: turned (bf16), as asked for (least cosine to float32: images 1.0")
    assert turned.converted == 1
    assert said[0] == "Converting the model for the back end turned, once"
    assert said[1].startswith("Converted in ") and said[1].endswith(f"seconds, into {model / 'backends' / 'turned'}")
    assert len(said) == 2
    weights = model / "model.safetensors"
    save_encoder(make_tiny_clip(1), model)
    assert weights.is_file()
    choose_backend(graphs_of(model, said), "turned")
    assert turned.converted == 2, "other weights, another graph"


def test_the_first_precision_that_is_admitted_is_taken(turned: Turned, model: Path) -> None:
    turned.error = 0.012  # a cosine of .99993 in fp32 and .9997 in bf16
    assert choose_backend(graphs_of(model), "turned").shapes.encoder.precision == "bf16"
    turned.error = 0.03
    with pytest.raises(
        BackendError, match=r"turned \(bf16\) is refused: .*; turned \(fp32\) is refused: .*backend=torch"
    ):
        choose_backend(graphs_of(model), "turned")
    choice = choose_backend(graphs_of(model), "auto")
    assert choice.shapes.encoder.name == "torch"
    assert "turned (bf16) is refused: the least cosine of its" in choice.reason


def test_auto_takes_the_fastest_and_says_what_became_of_the_others(turned: Turned, model: Path) -> None:
    choice = choose_backend(graphs_of(model), "auto")
    assert "the fastest" in choice.reason and "\n" not in choice.reason
    assert "turned (bf16)" in choice.reason and "torch (fp32)" in choice.reason
    first, second = (float(part.split(" ms")[0].split(") ")[1]) for part in choice.reason.split("; ")[:2])
    assert first <= second + 1  # images alone; texts count as well
    turned.package = "turned-package"
    assert (
        "turned is not installed (pip install 'domainclip[turned]'" in choose_backend(graphs_of(model), "auto").reason
    )
    with pytest.raises(
        MissingExtraError, match=r"backend=turned needs the package 'turned-package'.*domainclip\[turned\]"
    ):
        choose_backend(graphs_of(model), "turned")


def test_auto_keeps_to_its_time(turned: Turned, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainclip.inference.backends.choice.TRIAL_SECONDS", -1.0)
    choice = choose_backend(graphs_of(model), "auto")
    assert choice.shapes.encoder.name == "torch"
    assert "turned was not tried" in choice.reason


def test_a_large_model_is_converted_only_where_that_is_asked_for(
    turned: Turned, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domainclip.inference.backends.choice._QUICKLY_CONVERTED", 100)
    assert "backend=turned makes one, once" in choose_backend(graphs_of(model), "auto").reason
    assert turned.converted == 0
    choose_backend(graphs_of(model), "turned:fp32")
    assert "turned" in choose_backend(graphs_of(model), "auto").reason.split(";")[0] + "; turned"
    assert turned.converted == 1


def test_a_model_without_files_is_known_by_its_weights(turned: Turned, model: Path, tmp_path: Path) -> None:
    choose_backend(graphs_of("tiny"), "turned")
    choose_backend(graphs_of("tiny"), "turned")
    assert turned.converted == 1
    assert list((tmp_path / "cache" / "backends").glob("*/turned/graph.json"))


def test_torch_computes_in_bfloat16_where_the_processor_does(model: Path) -> None:
    graphs = graphs_of(model)
    choice = choose_backend(graphs, "torch:bf16")
    assert choice.shapes.encoder.precision == "bf16"
    images = drawn_images(3, 32, 8)
    one, other = choice.shapes.encode_images(images), graphs.torch().encode_images(images)
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05)
    with pytest.raises(BackendError, match="torch on the device cpu computes in fp32 or bf16"):
        choose_backend(graphs, "torch:int8")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("opnvino", "no such back end. Known: auto, torch, turned"),
        ("auto:bf16", "auto chooses the precision"),
        ("turned:int8", "turned computes in fp32 or bf16, not in 'int8'"),
        ("torch:fp64", "not in 'fp64'"),
    ],
)
def test_what_there_is_not_is_refused_by_name(turned: Turned, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse_backend(text)


# --- in a session ---


def session_of(model: Path | str, backend: str | None = None) -> ModelSession:
    values = {} if backend is None else {"backend": backend}
    config = CLIPFinetuningConfig(model_name=str(model), device="cpu", **values)
    return ModelSession.from_pretrained(resolve_for_inference(config), Console(quiet=True))


def test_a_session_encodes_by_its_back_end_in_closed_shapes(turned: Turned, model: Path) -> None:
    plain, session = session_of(model), session_of(model, "turned:fp32")
    images = [np.ascontiguousarray(image.transpose(1, 2, 0)) for image in drawn_images(11, 40, 2)]
    texts = ["a photo", "a red brick", "a red brick", "grass " * 100]
    for one in (session, plain):
        torch.testing.assert_close(one.encode_images(images), one.engine().encode_images(images), atol=1e-6, rtol=0)
        torch.testing.assert_close(one.encode_texts(texts), one.engine().encode_texts(texts), atol=1e-6, rtol=0)
    assert plain.backend.shapes == {("image", 8), ("image", 4), ("text", 2, 16), ("text", 1, 77)}
    assert session.backend.shapes > plain.backend.shapes, "those of the golden batch as well"
    assert (plain.backend.encoder.name, session.backend.encoder.name) == ("torch", "turned")
    assert turned.converted == 1


def test_a_session_whose_weights_have_changed_uses_no_graph(turned: Turned, model: Path) -> None:
    session = session_of(model, "turned")
    before = session.encode_texts("a photo")
    assert session.backend.encoder.name == "turned"
    with torch.no_grad():
        session.encoder.model.text_projection.weight[:8].neg_()
    session.as_loaded = False
    assert session.backend.encoder.name == "torch"
    assert not torch.allclose(session.encode_texts("a photo"), before)
    torch.testing.assert_close(session.encode_texts("a photo"), session.engine().encode_texts("a photo"))


@pytest.mark.parametrize("name", ["openvino", "onnx"])
def test_a_session_says_what_to_install(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(BACKENDS[name]), "missing", lambda self: name)
    with pytest.raises(MissingExtraError, match=rf"domainclip\[{name}\]"):
        session_of(model, name).encode_texts("a photo")
