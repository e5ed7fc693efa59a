"""Fixtures that several test files share."""

from __future__ import annotations

import csv
import gc
import io
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from commands import CommandResult
from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.events import Validated
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.models.processor import EncoderProcessor
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.resolve import batch_schedule
from machines import machine, metal_memory  # noqa: F401
from model_zoo import save_siglip, save_vision_text
from open_clip_zoo import KINDS
from tiny_data import TinyData, write_tiny_data


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """The collector of garbage leaves out what the imports make, which stays: hundreds of thousands of objects.

    It would take nearly half of the time of the imports, and each of the searches that end a training half a second.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture is made."""
    if item.get_closest_marker("slowest") and not os.environ.get("DOMAINCLIP_TEST_SLOWEST"):
        pytest.skip("takes half a minute: set DOMAINCLIP_TEST_SLOWEST=1, or make test-extras")


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """No test cuts the power, which alone loses what was written and not synced; waiting for the disk is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # which fails for what is no open file as well
        yield


@pytest.fixture(scope="module", autouse=True)
def unrendered(request: pytest.FixtureRequest) -> Iterator[None]:
    """Figures are made, but their files hold one pixel: rendering is a third of a short run.

    A file whose tests look at them is marked ``figures``; in ``tests/reports`` all do.
    """
    if request.node.get_closest_marker("figures"):
        yield
        return
    pixel = io.BytesIO()
    Image.new("RGB", (1, 1)).save(pixel, "PNG")

    def save(figure: Figure, file: IO[bytes], **options: Any) -> None:
        file.write(pixel.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: ``DOMAINCLIP_DATA``, else ``../shared/data`` by the repository."""
    default = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("DOMAINCLIP_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set DOMAINCLIP_DATA to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small saved model of each kind, and under ``parts`` the backbones that two of them were joined from."""
    base = tmp_path_factory.mktemp("models")
    save_encoder(make_tiny_clip(7), base / "clip")
    return {
        "clip": base / "clip",
        "siglip": save_siglip(base / "siglip"),
        "vision_text": save_vision_text(base / "vision_text", base / "parts"),
        "mobilenet": save_vision_text(base / "mobilenet", base / "parts", "mobilenet"),
        "parts": base / "parts",
    }


@pytest.fixture
def build(zoo: dict[str, Path]) -> Callable[[str], DualEncoder]:
    """Loads a kind of ``zoo``, in ``eval()`` mode."""
    return lambda kind: load_encoder(ModelSettings(model_name=str(zoo[kind])))


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    return write_tiny_data(tmp_path_factory.mktemp("tiny_data"))


@pytest.fixture
def domainclip(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Runs the command in this process: ``domainclip("train", "--data", folder)``. No traceback may reach the user."""
    from domainclip.cli.main import main

    for name in [name for name in os.environ if name.startswith("DOMAINCLIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> CommandResult:
        monkeypatch.setattr("sys.argv", ["domainclip", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err, captured.err
        return CommandResult(code if isinstance(code, int) else 0, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def real_notes(shared_data: Path) -> list[str]:
    """Findings of chest X-rays as they were written, of training and test rows."""
    rows: list[str] = []
    for split in ("train", "test"):
        with open(shared_data / "med_covid_cxr" / f"{split}.csv", encoding="utf-8", newline="") as handle:
            rows += [row["caption"] for row in csv.DictReader(handle)]
    return rows


@pytest.fixture(scope="session")
def open_clip_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small checkpoint of each kind that OpenCLIP writes."""
    base = tmp_path_factory.mktemp("open_clip")
    return {kind: write(base / kind) for kind, write in KINDS.items()}


@pytest.fixture(scope="session")
def processor() -> EncoderProcessor:
    return make_tiny_clip().processor


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow as it is where the extra ``heic`` is not installed."""
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images take most of the time of trials this short; one test looks at them."""
    for name in ("plot_history", "plot_importances", "plot_slices"):
        monkeypatch.setattr(f"domainclip.tune.results.{name}", lambda *arguments: False)


@pytest.fixture
def scripted(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Callable[[CLIPFinetuningConfig], list[float]]], list[CLIPFinetuningConfig]]:
    """Trials that train nothing: validation says what a script says of the trial's recipe. Returns the recipes seen."""

    def install(script: Callable[[CLIPFinetuningConfig], list[float]]) -> list[CLIPFinetuningConfig]:
        seen: list[CLIPFinetuningConfig] = []

        def fine_tune(
            self: CLIPFinetuningController, train: Any, val: Any, folder: Path, *, listeners: Any, **rest: Any
        ) -> dict[str, Any]:
            batches = batch_schedule(self.prepare(train), len(train))
            last, every = self.config.max_steps, self.config.eval_steps
            due = [n for n in range(1, last + 1) if n % every == 0 or batches.position(n)[1] == 0 or n == last]
            seen.append(self.config)
            for weights in ("checkpoints", "best", "model"):
                (folder / weights).mkdir(parents=True)
                (folder / weights / "file").write_text("weights")
            values = script(self.config)
            for number, value in enumerate(values):
                validated = Validated(
                    step=due[min(number, len(due) - 1)],
                    metrics={"acc1": value},
                    primary="acc1",
                    value=value,
                    greater_is_better=True,
                    standard_error=0.1,
                    top=value,
                    kept=True,
                )
                for listener in listeners:
                    listener(validated)
            best = max(values)
            step = self.config.eval_steps * (values.index(best) + 1)
            return {"best": {"value": best, "step": step}, "steps": self.config.max_steps}

        monkeypatch.setattr(CLIPFinetuningController, "fine_tune", fine_tune)
        monkeypatch.setattr("domainclip.tune.trial._free_memory", lambda: None)  # there is none to free
        return seen

    return install
