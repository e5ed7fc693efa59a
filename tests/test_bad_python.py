"""Bad input through Python: every kind is an error of the package before any work, or the right result."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from domainclip import (
    AlignmentMetrics,
    AlignmentVisualizer,
    CLIPDataset,
    CLIPFinetuningConfig,
    CLIPFinetuningController,
    DatasetLoader,
    DeviceManager,
    ImageTextRetrieval,
    MemoryManager,
    ModelSession,
    SimilarityComputer,
    run_training,
)
from domainclip.data import (
    ImageTransform,
    MultiCaptionCLIPDataset,
    MultiResolutionImageTransform,
    TextTransform,
    create_dataloader,
)
from domainclip.errors import CLIPFinetuningError
from domainclip.losses import (
    CLIPContrastiveLoss,
    DomainSpecificLoss,
    HardNegativeMiningLoss,
    MultiScaleLoss,
    TemperatureScheduler,
)
from tiny_data import TinyData

RED = Image.new("RGB", (8, 8), "red")
BYTES = np.zeros((8, 8, 3), np.uint8)


@dataclass
class World:
    """What the calls use."""

    session: ModelSession
    controller: CLIPFinetuningController
    empty: CLIPFinetuningController
    data: TinyData
    folder: Path

    @property
    def search(self) -> ImageTextRetrieval:
        return ImageTextRetrieval(self.session)

    @property
    def config(self) -> CLIPFinetuningConfig:
        return CLIPFinetuningConfig(model_name="tiny", device="cpu", num_workers=0)

    def run(self, **paths: Path) -> CLIPFinetuningConfig:
        return CLIPFinetuningConfig(model_name="tiny", device="cpu", num_workers=0, **paths)

    @property
    def rows(self) -> CLIPDataset:
        return CLIPDataset(self.data.pairs(), self.session.processor, self.config)


@pytest.fixture(scope="module")
def world(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.png").write_bytes(b"")
    (folder / "page.jpg").write_text("<html></html>")
    (folder / "cut.png").write_bytes(png()[:60])
    (folder / "folder").mkdir()
    (folder / "empty.csv").write_text("")
    (folder / "broken.yaml").write_text("learning_rate: [1\n")
    config = CLIPFinetuningConfig(model_name="tiny", device="cpu", num_workers=0)
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    return World(controller.session, controller, CLIPFinetuningController(config), tiny_data, folder)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


def closed(file: Any) -> Any:
    file.close()
    return file


def closed_image(world: World) -> Image.Image:
    path = world.folder / "closed.png"
    path.write_bytes(png())
    image = Image.open(path)
    image.close()
    return image


NO_IMAGES: dict[str, Callable[[World], Any]] = {
    "None": lambda w: None,
    "int": lambda w: 3,
    "float": lambda w: 0.5,
    "dict": lambda w: {"image": RED},
    "set": lambda w: {1},
    "object": lambda w: object(),
    "class": lambda w: Image.Image,
    "empty list": lambda w: [],
    "empty tuple": lambda w: (),
    "empty generator": lambda w: iter(()),
    "list of None": lambda w: [None],
    "nested list": lambda w: [[RED, RED]],
    "list of numbers": lambda w: [1, 2, 3],
    "mixed with None": lambda w: [RED, None],
    "pair": lambda w: [(RED, "a caption")],
    "empty string": lambda w: "",
    "blank string": lambda w: "  ",
    "null byte": lambda w: "a\0.png",
    "address": lambda w: "https://example.org/a.png",
    "missing file": lambda w: "gone.png",
    "missing Path": lambda w: w.folder / "gone.png",
    "very long path": lambda w: "a" * 5000 + ".png",
    "a folder": lambda w: w.folder / "folder",
    "empty file": lambda w: w.folder / "empty.png",
    "a page named jpg": lambda w: w.folder / "page.jpg",
    "truncated file": lambda w: w.folder / "cut.png",
    "a table": lambda w: w.data.table("train"),
    "empty bytes": lambda w: b"",
    "bytes of text": lambda w: b"hello",
    "truncated bytes": lambda w: png()[:60],
    "closed file": lambda w: closed(io.BytesIO(png())),
    "file at its end": lambda w: io.BytesIO(b""),
    "text file": lambda w: io.StringIO("hello"),
    "closed PIL image": closed_image,
    "array of objects": lambda w: np.array([[RED]], dtype=object),
    "array of text": lambda w: np.array([["a"]]),
    "complex array": lambda w: np.zeros((4, 4), np.complex64),
    "one number": lambda w: np.float32(3),
    "vector": lambda w: np.zeros(4, np.uint8),
    "empty array": lambda w: np.zeros((0, 4, 3), np.uint8),
    "no images in an array": lambda w: np.zeros((0, 4, 4, 3), np.uint8),
    "five axes": lambda w: np.zeros((1, 1, 4, 4, 3), np.uint8),
    "channels first": lambda w: np.zeros((3, 20, 30), np.uint8),
    "all NaN": lambda w: np.full((4, 4, 3), math.nan),
    "some NaN": lambda w: np.array([[0.5, math.nan]]),
    "infinite": lambda w: np.full((4, 4), math.inf),
    "normalised array": lambda w: np.random.default_rng(0).normal(size=(4, 4, 3)),
    "normalised tensor": lambda w: torch.randn(3, 8, 8),
    "tensor of text ids": lambda w: torch.zeros(77, dtype=torch.long),
    "complex tensor": lambda w: torch.zeros(3, 4, 4, dtype=torch.complex64),
    "empty tensor": lambda w: torch.zeros(3, 0, 4),
    "tensor of another device": lambda w: torch.zeros(3, 4, 4, device="meta"),
}
TAKERS: dict[str, Callable[[World, Any], Any]] = {
    "encode_images": lambda w, images: w.session.encode_images(images),
    "predict": lambda w, images: w.session.predict(images, ["red", "blue"]),
    "controller": lambda w, images: w.controller.encode_image(images),
    "similarity": lambda w, images: w.controller.compute_similarity(text=["a", "b"], images=images),
    "retrieve_text": lambda w, images: w.search.retrieve_text(images, ["a", "b"], top_k=1),
    "retrieve_image": lambda w, images: w.search.retrieve_image("a", images, top_k=1),
    "retrieve_mutual_nn": lambda w, images: w.search.retrieve_mutual_nn(images, ["a"]),
    "transform": lambda w, images: ImageTransform(w.config)(images),
}


def refused(call: Callable[[], Any]) -> str:
    """The message of an error of the package, which must be one and no longer than a few lines."""
    with pytest.raises(CLIPFinetuningError) as raised:
        call()
    message = str(raised.value)
    assert 10 < len(message) < 700 and message.count("\n") < 6, message
    return message


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image(name: str, taker: str, world: World) -> None:
    refused(lambda: TAKERS[taker](world, NO_IMAGES[name](world)))


@pytest.mark.parametrize("name", ["None", "int", "dict", "nested list", "empty list", "mixed with None", "class"])
def test_a_wrong_type_is_a_type_error_or_an_empty_list_a_value_error(name: str, world: World) -> None:
    with pytest.raises(ValueError if name == "empty list" else TypeError):
        world.session.encode_images(NO_IMAGES[name](world))


NO_TEXTS: dict[str, Any] = {
    "None": None,
    "int": 3,
    "bytes": b"a text",
    "dict": {"a": 1},
    "empty": [],
    "list of None": [None],
    "nested": [["a", "b"]],
    "a Path": Path("a"),
    "bytes in a list": ["a", b"b"],
    "array of numbers": np.zeros(3),
}


@pytest.mark.parametrize("name", NO_TEXTS)
def test_what_is_no_text(name: str, world: World) -> None:
    texts = NO_TEXTS[name]
    for call in (
        lambda: world.session.encode_texts(texts),
        lambda: world.controller.encode_text(texts),
        lambda: world.session.predict(RED, texts),
        lambda: world.session.similarity(RED, texts),
        lambda: world.search.retrieve_text(RED, texts, top_k=1),
        lambda: world.search.retrieve_image(texts, RED, top_k=1),
        lambda: TextTransform(world.session.processor, world.config)(texts),
    ):
        refused(call)


def test_forms_that_are_right(world: World) -> None:
    """One image in every form has one embedding, alone or among others."""
    values = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    path = world.folder / "right.png"
    Image.fromarray(values).save(path)
    tensor = torch.from_numpy(values).permute(2, 0, 1)
    expected = world.session.encode_images([path])
    forms = {
        "text": str(path),
        "PIL": Image.open(path),
        "array": values,
        "fractions": values / 255,
        "float32": (values / 255).astype(np.float32),
        "view": values[:, ::-1][:, ::-1],
        "tensor": tensor,
        "fractions of a tensor": tensor / 255,
        "with gradient": (tensor / 255).requires_grad_(),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(path.read_bytes()),
        "memory": memoryview(path.read_bytes()),
        "buffer": io.BytesIO(path.read_bytes()),
        "batch": values[None],
        "batch of tensors": tensor[None],
    }
    with open(path, "rb") as file:
        torch.testing.assert_close(world.session.encode_images(file), expected)
    for name, image in forms.items():
        found = world.session.encode_images(image)
        assert found.shape == (1, 32), name
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=name)

    def generated() -> Iterator[Any]:
        yield path
        yield values

    torch.testing.assert_close(world.session.encode_images(generated()), expected.repeat(2, 1))
    grey = values[..., 0]
    as_file = world.folder / "grey.png"
    Image.fromarray(grey).save(as_file)
    for image in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None], grey / 255):
        torch.testing.assert_close(world.session.encode_images(image), world.session.encode_images(as_file))
    duplicates = world.search.retrieve_text([path, path], ["a", "a", "b"], top_k=3)
    assert duplicates[0] == duplicates[1] and duplicates[0][0].score >= duplicates[0][2].score


A, B = torch.randn(3, 4), torch.randn(3, 4)
CALLS: dict[str, Callable[[World], Any]] = {
    # similarities and their ranks
    "compute of 1D": lambda w: SimilarityComputer().compute(A[0], B),
    "compute of other widths": lambda w: SimilarityComputer().compute(A, B[:, :2]),
    "compute of None": lambda w: SimilarityComputer().compute(None, B),
    "compute of a list of words": lambda w: SimilarityComputer().compute(["a"], B),
    "compute of objects": lambda w: SimilarityComputer().compute(np.array([[None]]), B),
    "top_k of k=0": lambda w: SimilarityComputer().top_k(A, k=0),
    "top_k of k=-1": lambda w: SimilarityComputer().top_k(A, k=-1),
    "top_k of huge k": lambda w: SimilarityComputer().top_k(A, k=10**12),
    "top_k of k=1.5": lambda w: SimilarityComputer().top_k(A, k=1.5),
    "top_k of k=None": lambda w: SimilarityComputer().top_k(A, k=None),
    "top_k of dim=3": lambda w: SimilarityComputer().top_k(A, k=1, dim=3),
    "top_k of NaN": lambda w: SimilarityComputer().top_k(A * math.nan, k=1),
    "top_k of text": lambda w: SimilarityComputer().top_k("matrix", k=1),
    "metric unknown": lambda w: SimilarityComputer(metric="cosin"),
    "metric None": lambda w: SimilarityComputer(metric=None),
    "retrieval of k=0": lambda w: w.search.retrieve_text(RED, ["a"], top_k=0),
    "retrieval of huge k": lambda w: w.search.retrieve_image("a", [RED], top_k=10**9),
    "retrieval of k as text": lambda w: w.search.retrieve_text(RED, ["a"], top_k="1"),
    "retrieval without a model": lambda w: ImageTextRetrieval(None),
    "retrieval by a string": lambda w: ImageTextRetrieval("tiny"),
    "retrieval with a metric's name": lambda w: ImageTextRetrieval(w.session, "cosine"),
    "batch of nothing": lambda w: w.search.batch_retrieve([], ["a"]),
    "batch of None": lambda w: w.search.batch_retrieve(None, ["a"]),
    "batch of both kinds": lambda w: w.search.batch_retrieve(["a", RED], ["a"]),
    "metrics of a wide matrix": lambda w: AlignmentMetrics().compute_all(A),
    "metrics of 1D": lambda w: AlignmentMetrics().compute_all(A[0]),
    "metrics of NaN": lambda w: AlignmentMetrics().compute_all(torch.full((3, 3), math.nan)),
    "metrics of nothing": lambda w: AlignmentMetrics().compute_all(torch.zeros(0, 0)),
    "metrics of text": lambda w: AlignmentMetrics().compute_all("matrix"),
    "metrics of k=0": lambda w: AlignmentMetrics().recall_at_k(torch.eye(3), k=0),
    "metrics of k as text": lambda w: AlignmentMetrics().recall_at_k(torch.eye(3), k="5"),
    "score of NaN": lambda w: AlignmentMetrics().compute_alignment_score(torch.full((3, 3), math.nan)),
    # plots
    "plot of 1D": lambda w: AlignmentVisualizer(w.folder).plot_similarity_matrix(A[0]),
    "plot to a folder": lambda w: AlignmentVisualizer(w.folder).plot_similarity_matrix(A, save_path=w.folder),
    "plot to no PNG": lambda w: AlignmentVisualizer(w.folder).plot_similarity_matrix(A, save_path="a.txt"),
    "plot into a file": lambda w: AlignmentVisualizer(w.data.table("train")).plot_similarity_matrix(A),
    "plot of answers as numbers": lambda w: AlignmentVisualizer(w.folder).plot_retrieval_results(RED, [1, 2]),
    "plot of text scores": lambda w: AlignmentVisualizer(w.folder).plot_retrieval_results(RED, [("a", "high")]),
    "curves of other lengths": lambda w: AlignmentVisualizer(w.folder).plot_recall_curves({"i2t": [0.5]}, [1, 5]),
    "curves above 1": lambda w: AlignmentVisualizer(w.folder).plot_recall_curves({"i2t": [0.5, 50]}, [1, 5]),
    "curves of falling K": lambda w: AlignmentVisualizer(w.folder).plot_recall_curves({"i2t": [0.5, 0.6]}, [5, 1]),
    "curves without K": lambda w: AlignmentVisualizer(w.folder).plot_recall_curves({"i2t": [0.5, 0.6]}),
    "curves of nothing": lambda w: AlignmentVisualizer(w.folder).plot_recall_curves({}, [1]),
    # losses
    "temperature 0": lambda w: CLIPContrastiveLoss(temperature=0),
    "temperature NaN": lambda w: CLIPContrastiveLoss(temperature=math.nan),
    "temperature as text": lambda w: CLIPContrastiveLoss(temperature="warm"),
    "temperature None": lambda w: CLIPContrastiveLoss(temperature=None),
    "temperature set to -1": lambda w: setattr(CLIPContrastiveLoss(), "temperature", -1),
    "loss of 1D": lambda w: CLIPContrastiveLoss()(A[0], B[0]),
    "loss of other batches": lambda w: CLIPContrastiveLoss()(A, B[:2]),
    "loss of other widths": lambda w: CLIPContrastiveLoss()(A, B[:, :2]),
    "loss of nothing": lambda w: CLIPContrastiveLoss()(A[:0], B[:0]),
    "loss of None": lambda w: CLIPContrastiveLoss()(None, B),
    "loss of arrays": lambda w: CLIPContrastiveLoss()(A.numpy(), B.numpy()),
    "loss of two devices": lambda w: CLIPContrastiveLoss()(A, B.to("meta")),
    "ratio 2": lambda w: HardNegativeMiningLoss(hard_negative_ratio=2),
    "strategy unknown": lambda w: HardNegativeMiningLoss(mining_strategy="soft"),
    "domain unknown": lambda w: DomainSpecificLoss(domain="legal"),
    "domain None": lambda w: DomainSpecificLoss(domain=None),
    "scales of nothing": lambda w: MultiScaleLoss(scales=[]),
    "scale below 0": lambda w: MultiScaleLoss(scales=[-1.0]),
    "weights of another length": lambda w: MultiScaleLoss(scales=[1.0], scale_weights=[1.0, 2.0]),
    "schedule unknown": lambda w: TemperatureScheduler(schedule_type="linear"),
    "schedule None": lambda w: TemperatureScheduler(schedule_type=None),
    "warmup longer than all": lambda w: TemperatureScheduler(warmup_steps=50, total_steps=10),
    "steps as text": lambda w: TemperatureScheduler(total_steps="10"),
    "state of another kind": lambda w: TemperatureScheduler().load_state({}),
    # data
    "table missing": lambda w: DatasetLoader.from_csv(w.folder / "gone.csv"),
    "table empty": lambda w: DatasetLoader.from_csv(w.folder / "empty.csv"),
    "table a folder": lambda w: DatasetLoader.from_csv(w.folder),
    "table None": lambda w: DatasetLoader.from_csv(None),
    "table a number": lambda w: DatasetLoader.load(3),
    "column unknown": lambda w: DatasetLoader.from_csv(w.data.table("train"), caption_col="words"),
    "folder empty": lambda w: DatasetLoader.from_directory(w.folder / "folder"),
    "folder a file": lambda w: DatasetLoader.from_directory(w.data.table("train")),
    "split unknown": lambda w: DatasetLoader.from_json(w.data.table("train")),
    "dataset of nothing": lambda w: CLIPDataset([], w.session.processor, w.config),
    "dataset before setup": lambda w: CLIPDataset(w.data.pairs(), w.empty.processor, w.config),
    "dataset of captions alone": lambda w: CLIPDataset(["a"], w.session.processor, w.config),
    "dataset without a config": lambda w: CLIPDataset(w.data.pairs(), w.session.processor, None),
    "row by name": lambda w: w.rows["first"],
    "captions as text": lambda w: MultiCaptionCLIPDataset({"a.png": "abc"}, w.session.processor, w.config),
    "captions of none": lambda w: MultiCaptionCLIPDataset({"a.png": []}, w.session.processor, w.config),
    "batch size 0": lambda w: create_dataloader(w.rows, w.config, batch_size=0),
    "batch size as text": lambda w: create_dataloader(w.rows, w.config, batch_size="8"),
    "workers -1": lambda w: create_dataloader(w.rows, w.config, num_workers=-1),
    "workers 1.5": lambda w: create_dataloader(w.rows, w.config, num_workers=1.5),
    "loader of None": lambda w: create_dataloader(None, w.config),
    "loader without a config": lambda w: create_dataloader(w.rows, None),
    "resolution unknown": lambda w: MultiResolutionImageTransform(w.config, [32])(RED, resolution=64),
    "resolutions of nothing": lambda w: MultiResolutionImageTransform(w.config, []),
    "text transform by a word": lambda w: TextTransform("tokenizer"),
    # recipes, models, devices
    "key unknown": lambda w: CLIPFinetuningConfig(learning_rat=1e-5),
    "rate below 0": lambda w: CLIPFinetuningConfig(learning_rate=-1),
    "rate as text": lambda w: CLIPFinetuningConfig(learning_rate="fast"),
    "rate NaN": lambda w: CLIPFinetuningConfig(learning_rate=math.nan),
    "batch 0": lambda w: CLIPFinetuningConfig(batch_size=0),
    "domain of a recipe": lambda w: CLIPFinetuningConfig(domain="legal"),
    "recipe of None": lambda w: CLIPFinetuningConfig.from_dict(None),
    "recipe of a list": lambda w: CLIPFinetuningConfig.from_dict([1]),
    "recipe missing": lambda w: CLIPFinetuningConfig.from_yaml(w.folder / "gone.yaml"),
    "recipe broken": lambda w: CLIPFinetuningConfig.from_yaml(w.folder / "broken.yaml"),
    "recipe a folder": lambda w: CLIPFinetuningConfig.from_yaml(w.folder),
    "model missing": lambda w: ModelSession.from_pretrained(w.folder / "gone"),
    "model an empty folder": lambda w: ModelSession.from_pretrained(w.folder / "folder"),
    "model a table": lambda w: ModelSession.from_pretrained(w.data.table("train")),
    "model None": lambda w: ModelSession.from_pretrained(None),
    "model a number": lambda w: ModelSession.from_pretrained(3),
    "model an empty name": lambda w: ModelSession.from_pretrained(""),
    "device unknown": lambda w: DeviceManager(device="tpu"),
    "device absent": lambda w: CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", device="mps")).setup(),
    "memory of a word": lambda w: MemoryManager("tpu"),
    "controller of a dict": lambda w: CLIPFinetuningController({"model_name": "tiny"}),
    "controller of a name": lambda w: CLIPFinetuningController("tiny"),
    "encode before setup": lambda w: w.empty.encode_text(["a"]),
    "similarity before setup": lambda w: w.empty.compute_similarity(text=["a"], images=[RED]),
    "training before setup": lambda w: w.empty.fine_tune(w.data.pairs()),
    # runs
    "run of a dict": lambda w: run_training({"model_name": "tiny"}),
    "run of None": lambda w: run_training(None),
    "run of missing data": lambda w: run_training(
        w.config.updated(data_path=str(w.folder / "gone"), output_dir=w.folder / "r")
    ),
    "run into a file": lambda w: run_training(
        w.config.updated(data_path=str(w.data.folder), output_dir=w.data.table("train"))
    ),
    "training on one row": lambda w: w.controller.fine_tune(w.data.pairs()[:1], output_path=w.folder / "r"),
    "training on a path": lambda w: w.controller.fine_tune(w.data.table("train"), output_path=w.folder / "r"),
    "metric not there": lambda w: w.controller.evaluate_on_domain(w.data.pairs("test"), ["acuracy"]),
    "metric not there, as a word": lambda w: w.controller.evaluate_on_domain(w.data.pairs("test"), "acuracy"),
    "evaluation of nothing": lambda w: w.controller.evaluate_on_domain([]),
    "evaluation of missing images": lambda w: w.controller.evaluate_on_domain([("gone.png", "a"), ("gone2.png", "b")]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call(name: str, world: World) -> None:
    refused(lambda: CALLS[name](world))
    assert not (world.folder / "r").exists()


def test_there_are_enough_kinds() -> None:
    assert len(NO_IMAGES) + len(NO_TEXTS) + len(CALLS) > 150
