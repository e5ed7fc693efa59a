"""One model at several resolutions: the embeddings, their cost, the command, its files and its errors."""

from __future__ import annotations

import json
import mmap
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from domainclip.cli.options import parse_resolutions
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import read_image
from domainclip.errors import ConfigurationError, ImageError, MemoryConstraintError
from domainclip.evaluation.robustness import (
    CORRUPTIONS,
    Agreement,
    Clean,
    Condition,
    CorruptionCurve,
    CorruptionLevel,
    Robustness,
    corrupt,
)
from domainclip.inference import EmbeddingEngine
from domainclip.models import make_tiny_clip
from domainclip.models import position_embeddings as positions_module
from domainclip.pipelines import condition_embedding, embedding_cost
from domainclip.pipelines.condition_embedding import ConditionEmbedder
from domainclip.pipelines.embedding_cost import TIMED_ROUNDS, embedding_costs
from domainclip.pipelines.evaluate_resolutions import run_resolutions
from domainclip.reports.plots.resolution import agreement_table, plot_agreement, plot_resolutions, plot_robustness
from domainclip.reports.schema.resolutions import AtResolution, ResolutionsReport
from domainclip.training.memory import monitor as memory_monitor
from model_zoo import save_vision_text

pytestmark = [pytest.mark.slow, pytest.mark.figures]

CPU = torch.device("cpu")
CONDITIONS = [Condition(16), Condition(32), Condition(32, "blur", 2), Condition(32, "noise", 4), Condition(48)]


def embedder_of(**options: Any) -> ConditionEmbedder:
    return ConditionEmbedder(make_tiny_clip(), CPU, CONDITIONS, seed=3, **options)


# --- embeddings ---


def test_embeddings_are_those_of_the_engine_on_the_same_images(tiny_data) -> None:
    paths = [pair.image_path for pair in tiny_data.pairs("val")]
    embeds, rows, problems = embedder_of(batch_size=4).embed(paths)
    assert problems == {}
    assert rows == {path: index for index, path in enumerate(paths)}
    for condition in CONDITIONS:
        images = [read_image(path) for path in paths]
        if condition.corruption:
            # The tiny model brings the short side to its own and keeps the proportions.
            sizes = [[32 * side // min(p.shape[:2]) for side in p.shape[:2]] for p in images]
            images = [
                corrupt(p, condition.corruption, condition.severity, (h, w), seed=3)
                for p, (h, w) in zip(images, sizes, strict=True)
            ]
        engine = EmbeddingEngine(make_tiny_clip(), resolution=condition.resolution)
        expected = engine.encode_images([Image.fromarray(image) for image in images])
        assert torch.allclose(embeds[condition], expected, atol=1e-6)
    assert not torch.allclose(embeds[Condition(32)], embeds[Condition(16)], atol=1e-3)
    assert not torch.allclose(embeds[Condition(32)], embeds[Condition(32, "noise", 4)], atol=1e-3)


def test_each_image_is_decoded_once_and_few_are_held(tiny_data, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [pair.image_path for pair in tiny_data.pairs("train")]
    whole, _, _ = embedder_of(batch_size=64).embed(paths)
    decoded: list[Path] = []

    def counting(pipeline: DomainImagePipeline, path: Path, *limits: int) -> np.ndarray:
        decoded.append(path)
        return read_image(path)

    monkeypatch.setattr(DomainImagePipeline, "read", counting)
    bytes_each = 3 * (16**2 + 3 * 32**2 + 48**2)
    monkeypatch.setattr(condition_embedding, "BUFFER_BYTES", 5 * bytes_each + 1)
    embedder = embedder_of(batch_size=64)
    assert embedder.images_per_batch == 5
    together = []
    plain = embedder.embed_pixels

    def watched(pixels: torch.Tensor) -> torch.Tensor:
        together.append(len(pixels))
        return plain(pixels)

    monkeypatch.setattr(embedder, "embed_pixels", watched)
    few, _, _ = embedder.embed(paths)
    assert sorted(decoded) == sorted(paths)
    assert together == [5] * 15 + [3] * 5  # 18 images under 5 conditions
    for condition in CONDITIONS:
        assert torch.allclose(few[condition], whole[condition], atol=1e-6)
    monkeypatch.setattr(condition_embedding, "BUFFER_BYTES", 1)
    assert embedder.images_per_batch == 1
    assert embedder_of(batch_size=2).images_per_batch == 1


def test_unreadable_images_are_told_apart(tiny_data, tmp_path: Path) -> None:
    paths = [pair.image_path for pair in tiny_data.pairs("val")]
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.png"
    broken.write_bytes(b"\xff\xd8\xff broken")
    mixed = [missing, paths[0], broken, *paths[1:]]
    embeds, rows, problems = embedder_of(batch_size=2).embed(mixed)
    expected, _, _ = embedder_of().embed(paths)
    assert set(problems) == {broken, missing}
    assert all(str(path) in problem for path, problem in problems.items())
    for condition in CONDITIONS:
        found = embeds[condition][[rows[path] for path in paths]]
        assert torch.allclose(found, expected[condition], atol=1e-6)
    with pytest.raises(ImageError, match=r"missing\.png"):
        embedder_of(strict=True).embed(mixed)
    assert embedder_of().embed([broken]) == ({}, {}, {broken: problems[broken]})


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_is_said_with_the_remedy(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = embedder_of(batch_size=7)

    def full(pixels: torch.Tensor) -> torch.Tensor:
        raise error

    monkeypatch.setattr(embedder.encoder, "encode_image", full)
    with pytest.raises(MemoryConstraintError, match=r"Not even one of the images.*smaller image_resolution"):
        embedder.embed_pixels(torch.zeros(3, 3, 48, 48, dtype=torch.uint8))
    error.args = ("mat1 and mat2 shapes cannot be multiplied",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            embedder.embed_pixels(torch.zeros(3, 3, 48, 48, dtype=torch.uint8))


# --- cost ---


class Clock:
    """Stands for the module ``time``: it goes on only by what the work takes."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_costs_are_those_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    clock, looked, read = Clock(), threading.Event(), memory_monitor.held_bytes

    def held_bytes(device: torch.device) -> int:
        held = read(device)
        looked.set()
        return held

    def embed_pixels(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(pixels.shape))
        assert pixels.dtype == torch.uint8
        # Two MiB for each pixel of the resolution, from the system: a heap would take some of what earlier tests gave
        # back.
        held = np.frombuffer(mmap.mmap(-1, pixels.shape[-1] * 2**21), dtype=np.uint8)
        held[:] = 1
        if calls.count(calls[-1]) == 1:  # the warm-up: however busy the machine is, the memory is looked at meanwhile
            for _ in range(2):  # the first look may have begun before the bytes were there
                looked.clear()
                assert looked.wait(60)
        clock.now += pixels.shape[-1] / 1000
        return torch.from_numpy(held[:1].copy())

    monkeypatch.setattr(memory_monitor, "held_bytes", held_bytes)
    monkeypatch.setattr(embedding_cost, "time", clock)
    costs = embedding_costs(embed_pixels, [96, 32], 5, CPU)
    assert set(calls) == {(5, 3, 32, 32), (5, 3, 96, 96)}
    assert calls[:2] == [(5, 3, 32, 32), (5, 3, 96, 96)]  # warm-up, and memory, from the smaller to the larger
    for resolution in (32, 96):
        assert (
            len(costs[resolution].seconds_per_batch) == TIMED_ROUNDS == calls.count((5, 3, resolution, resolution)) - 1
        )
        assert costs[resolution].seconds_per_batch == pytest.approx([resolution / 1000] * TIMED_ROUNDS)
        assert costs[resolution].images_per_second == pytest.approx(5 / (resolution / 1000))
    assert costs[96].peak_memory_mb - costs[32].peak_memory_mb == pytest.approx(128, abs=16)


def test_a_slow_resolution_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()

    def embed_pixels(pixels: torch.Tensor) -> torch.Tensor:
        clock.now += 0.02
        return pixels

    monkeypatch.setattr(embedding_cost, "time", clock)
    monkeypatch.setattr(embedding_cost, "TIMED_SECONDS", 0.01)
    costs = embedding_costs(embed_pixels, [16], 1, CPU)
    assert costs[16].seconds_per_batch == [pytest.approx(0.02)]


# --- the command ---


def evaluated(domainclip, tiny_data, *options: object) -> dict:
    result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--json", *options)
    assert result.exit_code == 0, result.err
    return json.loads(result.out)


def test_the_command(tiny_data, tmp_path: Path, domainclip) -> None:
    output = tmp_path / "deep" / "figures.v1.json"
    found = evaluated(domainclip, tiny_data, "--resolutions", "48,16", "--output", output)
    assert json.loads(output.read_text()) == found
    plots = [output.with_name(f"figures.v1_{name}.png") for name in ("resolutions", "agreement", "robustness")]
    for plot in plots:
        with Image.open(plot) as image:
            assert min(image.size) > 300
            assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10
    assert sorted(path.name for path in output.parent.iterdir()) == sorted(path.name for path in (output, *plots))

    assert (found["n_rows"], found["n_images"], found["native_resolution"]) == (6, 6, 32)
    assert [(row["resolution"], row["native"]) for row in found["resolutions"]] == [
        (16, False),
        (32, True),
        (48, False),
    ]
    for row in found["resolutions"]:
        # The figures at a resolution are those of a plain evaluation at that resolution.
        plain = evaluated(domainclip, tiny_data, f"image_resolution={row['resolution']}")["metrics"]
        assert row["metrics"] == pytest.approx(plain)
        assert row["images_per_second"] > 0
        assert row["peak_memory_mb"] > 50
    own = found["resolutions"][1]
    assert ResolutionsReport.model_validate(found).to_dict() == found and found["schema_version"] == "1.0"
    assert own["agreement"]["mean_cosine"] == pytest.approx(1)
    assert own["agreement"]["same_class"] == 1
    assert own["change"]["p_value"] == 1
    assert found["resolutions"][0]["agreement"]["mean_cosine"] < 0.9999
    damaged = found["robustness"]
    assert damaged["resolution"] == 32
    assert damaged["clean"]["metrics"] == own["metrics"]
    for name in ("blur", "downscale", "jpeg", "noise"):
        levels = damaged["corruptions"][name]["levels"]
        assert [level["level"] for level in levels] == list(CORRUPTIONS[name].levels)
        assert levels[-1]["agreement"]["mean_cosine"] < levels[0]["agreement"]["mean_cosine"] <= 1
    assert found["measurement"]["batch_size"] == 64


def test_without_robustness_and_over_an_earlier_evaluation(tiny_data, tmp_path: Path, domainclip) -> None:
    output = tmp_path / "figures.json"
    earlier = tmp_path / "figures_robustness.png"
    (tmp_path / "other.png").write_bytes(b"not ours")
    options = ["evaluate", "-m", "tiny", "-d", tiny_data.folder, "--resolutions", "16,16", "--output", output]
    assert domainclip(*options).exit_code == 0
    assert earlier.exists()
    result = domainclip(*options, "--no-robustness")
    assert result.exit_code == 0, result.err
    assert not earlier.exists()
    assert (tmp_path / "other.png").exists()
    assert json.loads(output.read_text())["robustness"] is None
    lines = result.out.splitlines()
    assert any("16" in line and "0." in line for line in lines)
    assert any("32 (own)" in line for line in lines)
    assert "Corrupted images" not in result.out
    assert "figures_agreement.png" in result.out
    assert "float32, in batches of 64" in result.out


def test_the_tables_fit_into_a_narrow_terminal(tiny_data, domainclip, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--resolutions", "16")
    assert result.exit_code == 0, result.err
    cells = [line for line in result.out.splitlines() if "│" in line or line.startswith("  ")]
    assert not any("…" in line for line in cells)
    for word in ("downscale", "untouched", "images/s", "same caption", "One image more or less is 0.1667"):
        assert word in result.out


def test_corruption_is_done_at_the_recipes_own_resolution(tiny_data, domainclip) -> None:
    found = evaluated(domainclip, tiny_data, "--resolutions", "32", "image_resolution=24")
    assert [row["resolution"] for row in found["resolutions"]] == [32]
    assert found["robustness"]["resolution"] == 24
    plain = evaluated(domainclip, tiny_data, "image_resolution=24")["metrics"]
    assert found["robustness"]["clean"]["metrics"] == pytest.approx(plain)


PLUGIN = """
from domainclip.evaluation.robustness import CORRUPTIONS, Corruption


def darken(image, level, model_size, seed):
    return (image * level).astype("{dtype}")


CORRUPTIONS.register("dark")(Corruption("dark", "fraction of the light", 1.0, (0.5, 0.001), darken))
"""


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_kind_of_corruption_of_ones_own(
    dtype: str, tiny_data, tmp_path: Path, domainclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CORRUPTIONS, "_entries", dict(CORRUPTIONS._entries))  # it goes with this test
    plugin = tmp_path / f"dark_{dtype}.py"
    plugin.write_text(PLUGIN.format(dtype=dtype))
    options = ["evaluate", "-m", "tiny", "-d", tiny_data.folder, "--json", "--resolutions", "32", f"plugins=[{plugin}]"]
    result = domainclip(*options)
    if dtype == "float32":
        assert result.exit_code == 2
        assert "'dark' made float32" in result.err
        return
    assert result.exit_code == 0, result.err
    dark = json.loads(result.out)["robustness"]["corruptions"]["dark"]
    assert (dark["unit"], dark["untouched_level"]) == ("fraction of the light", 1.0)
    assert [level["level"] for level in dark["levels"]] == [0.5, 0.001]
    engine = EmbeddingEngine(make_tiny_clip(42))  # of the recipe's seed
    black = engine.encode_images([Image.new("RGB", (32, 32))])
    own = engine.encode_images([pair.image_path for pair in tiny_data.pairs("test")])
    expected = (own @ black.T).mean()  # so little light is none
    assert dark["levels"][1]["agreement"]["mean_cosine"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--resolutions", "16,20"], "Invalid resolution 20: this image tower reads patches of 8 pixels"),
        (["--resolutions", "4"], "Invalid resolution 4"),
        (["--resolutions", ""], "Invalid resolution ''"),
        (["--resolutions", "16,,32"], "Invalid resolution ''"),
        (["--resolutions", "16,large"], "Invalid resolution 'large'"),
        (["--resolutions", "16,-8"], "Invalid resolution '-8'"),
        (["--resolutions", "0"], "Invalid resolution '0'"),
        (["--resolutions", "16", "--split", "tset"], "Invalid split 'tset'"),
        (["--resolutions", "16", "image_resolution=30"], "Invalid resolution 30"),
        (["--no-robustness"], "go with --resolutions"),
    ],
)
def test_what_cannot_be_evaluated_is_said(options: list[str], message: str, tiny_data, domainclip) -> None:
    result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, *options)
    assert result.exit_code == 2
    assert message in result.err
    assert result.out == ""


def test_the_error_names_resolutions_that_work(tiny_data, domainclip) -> None:
    result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--resolutions", "20")
    assert "choose 16 or 24" in result.err


def test_no_resolution_at_all() -> None:
    with pytest.raises(ConfigurationError, match="No resolution to evaluate at"):
        run_resolutions(CLIPFinetuningConfig(model_name="tiny"), [])


def test_resolutions_are_read_in_order_each_once() -> None:
    assert parse_resolutions("224, 96,160,96") == [96, 160, 224]


@pytest.mark.parametrize(("place", "message"), [(".", "is a directory"), ("file/x.json", "cannot be written")])
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    place: str, message: str, tiny_data, tmp_path: Path, domainclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("domainclip.pipelines.evaluate_resolutions.run_resolutions", None)  # not even begun
    options = ["-m", "tiny", "-d", tiny_data.folder, "--resolutions", "16", "--output", tmp_path / place]
    result = domainclip("evaluate", *options)
    assert result.exit_code == 2
    assert message in result.err


def test_unreadable_images_are_skipped(tiny_data, tmp_path: Path, domainclip) -> None:
    folder = tmp_path / "data"
    shutil.copytree(tiny_data.folder, folder)
    broken = tiny_data.pairs("test")[0].image_path.name
    (folder / "images" / broken).write_bytes(b"\xff\xd8\xff broken")
    options = ["evaluate", "-m", "tiny", "-d", folder, "--resolutions", "16", "--no-robustness"]
    found = json.loads(domainclip(*options, "--json").out)
    assert (found["n_rows"], found["n_images"]) == (5, 5)
    assert [Path(row["image_path"]).name for row in found["skipped"]] == [broken]
    plain = json.loads(domainclip("evaluate", "-m", "tiny", "-d", folder, "--json").out)
    assert found["skipped"] == plain["skipped"]
    assert found["resolutions"][1]["metrics"] == pytest.approx(plain["metrics"])
    assert "Skipped" in domainclip(*options).out

    strict = domainclip(*options, "strict=true")
    assert (strict.exit_code, broken in strict.err) == (2, True)
    for pair in tiny_data.pairs("test"):
        (folder / "images" / pair.image_path.name).write_bytes(b"broken")
    none = domainclip(*options)
    assert none.exit_code == 2
    assert "No image of the test split" in none.err


def test_a_tower_of_fixed_positions_takes_its_own_resolution_only(
    tiny_data, tmp_path: Path, domainclip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(positions_module._SCHEMES, "vit")  # stands for any tower with fixed positions
    model = save_vision_text(tmp_path / "model", tmp_path / "parts")
    options = ["evaluate", "-m", model, "-d", tiny_data.folder, "--no-robustness", "--json", "--resolutions"]
    refused = domainclip(*options, "32,48")
    assert refused.exit_code == 2
    assert "Invalid resolution 48: this image tower takes 32 pixels only" in refused.err
    output = tmp_path / "one.json"
    taken = domainclip(*options, "32", "--output", output)
    assert taken.exit_code == 0, taken.err
    assert [row["resolution"] for row in json.loads(taken.out)["resolutions"]] == [32]
    assert list(tmp_path.glob("one*.png")) == []  # nothing to compare, nothing to draw


# --- plots ---


def a_row(resolution: int, metrics: dict[str, float], same_class: float | None) -> AtResolution:
    return AtResolution(
        resolution=resolution,
        native=resolution == 224,
        metrics=metrics,
        images_per_second=1000.0 / resolution,
        peak_memory_mb=1.0,
        agreement=Agreement(0.9, same_class, 0.5),
        change=None,
    )


def test_plots_of_data_without_classes_and_of_zero_fractions(tmp_path: Path) -> None:
    metrics = {"i2t_R@1": 0.0, "t2i_R@1": 0.0, "n_images": 40}
    rows = [a_row(resolution, metrics, None) for resolution in (16, 216, 224, 1024)]
    made = [
        plot_resolutions(rows, tmp_path / "a.png", "model [/b] $x$ on data", "a machine"),
        plot_agreement(rows, tmp_path / "b.png", "title " * 40),
    ]
    levels = [CorruptionLevel(n, 1.5 * n, metrics, Agreement(0.9, None, 0.5), None) for n in (1, 2)]
    one_kind = Robustness(224, 0, Clean(metrics), {"fog": CorruptionCurve("thickness", 0.0, levels)})
    made.append(plot_robustness(one_kind, tmp_path / "c.png", "one kind"))
    for path in made:
        with Image.open(path) as image:
            image.load()
            assert image.width > 300
    table = agreement_table(rows, 224)
    assert list(table.columns[4].cells) == ["–"] * 3
