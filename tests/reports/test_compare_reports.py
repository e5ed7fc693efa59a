"""Models and data sets side by side: pages, the command, and what cannot be compared."""

from __future__ import annotations

import csv
import json
import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compare_cases import assert_page_shows, fractions, matrix_content, typed
from domainclip.cli.compare import named
from domainclip.config import CLIPFinetuningConfig
from domainclip.domains.files import load_domain
from domainclip.errors import ConfigurationError
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores
from domainclip.inference import ModelSession
from domainclip.models.io import save_encoder
from domainclip.models.tiny import make_tiny_clip
from domainclip.pipelines.compare import run_compare, shared_prompts
from domainclip.reports.comparison import compare_html
from domainclip.reports.plots.compare import plot_matrix
from domainclip.reports.schema import ComparisonReport
from domainclip.resolve import resolve_for_inference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("n_models", "n_sets"), [(1, 1), (10, 10)])
def test_one_or_ten_of_each_are_drawn(n_models: int, n_sets: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {f"a model with a rather long name, number {index}": "" for index in range(n_models)}
    sets = [
        SetScores(
            f"ein_sehr_langer_name_ohne_leerzeichen_{index}",
            "",
            "acc1",
            {name: ModelOnSet(fractions(rng.random(40) < 0.5)) for name in names},
            n_images=40,
        )
        for index in range(n_sets)
    ]
    content = matrix_content(names, sets, next(iter(names)))
    report = typed(content)
    assert_page_shows(content, compare_html(report))
    with Image.open(plot_matrix(report, tmp_path / "matrix.png")) as image:
        assert image.width > 100 * n_sets and image.height > 60 * n_models


# --- names ---


def test_names_are_given_or_the_end_that_tells_apart(tmp_path: Path) -> None:
    assert named(["runs/a/model", "runs/b/model", "mine=c", "openai/clip"], "model") == {
        "a/model": "runs/a/model",
        "b/model": "runs/b/model",
        "mine": "c",
        "clip": "openai/clip",
    }
    odd = tmp_path / "rate=1e-5"
    odd.mkdir()
    assert named([str(odd)], "model") == {"rate=1e-5": str(odd)}
    for wrong, message in (
        (["a", "b=a", "b=c"], "Two of --model"),
        (["=x"], "NAME=PATH"),
        ([], "at least one"),
        (["a", "a"], "Two of --model"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            named(wrong, "model")


# --- the command ---


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"clip_{seed}")
        save_encoder(make_tiny_clip(seed), folder)
        folders.append(folder)
    return folders


def one_class(tmp_path: Path, images: Path) -> Path:
    table = tmp_path / "one_class.csv"
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_path", "caption", "label"])
        writer.writerows([(path, "brick", "brick") for path in sorted(images.glob("brick*"))])
    return table


def test_the_command(tiny_data, two_models, domainclip, tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    single = one_class(tmp_path, tiny_data.folder / "images")
    arguments = [
        "compare",
        "--model",
        f"base={two_models[0]}",
        "--model",
        f"other={two_models[1]}",
        "--data",
        tiny_data.folder,
        "--data",
        f"one class={single}",
        "--data",
        tmp_path / "missing.csv",
        "--output",
        out,
        "--split",
        "all",
        "device=cpu",
    ]
    found = domainclip(*arguments, "--json")
    assert found.exit_code == 0, found.err
    content = json.loads(found.out)
    assert content == json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert ComparisonReport.from_values(content).to_dict() == content
    written = {path.name for path in out.iterdir()} - {".domainclip.json"}  # the record of what was written
    assert written == {"compare.json", "compare.md", "compare.html", "matrix.png"}
    cells = {(cell["model"], cell["data"]): cell for cell in content["cells"]}
    name = tiny_data.folder.name
    for label, folder in zip(("base", "other"), two_models, strict=True):
        alone = domainclip(
            "evaluate", "--model", folder, "--data", tiny_data.folder, "--split", "all", "--json", "device=cpu"
        )
        expected = json.loads(alone.out)["metrics"]
        assert cells[label, name]["value"] == pytest.approx(expected["acc1"], abs=1e-9)
        assert cells[label, name]["metrics"] == pytest.approx(expected)
    assert cells["base", "one class"]["verdict"] == "not evaluated"
    assert "classes" in cells["base", "one class"]["reason"]
    assert "missing.csv" in cells["other", "missing.csv"]["reason"]
    assert_page_shows(content, (out / "compare.html").read_text(encoding="utf-8"))
    printed = domainclip(*arguments)
    assert printed.exit_code == 0 and "one class" in printed.out
    assert cells["other", name]["verdict"] in printed.out and f"{cells['base', name]['value']:.1%}" in printed.out

    strict = domainclip(*arguments, "--strict")
    assert strict.exit_code == 2 and "Error:" in strict.err


def trained_in(folder: Path, domain: str, seed: int) -> str:
    save_encoder(make_tiny_clip(seed), folder)
    (folder / "domain.yaml").write_text(load_domain(domain).to_yaml(), encoding="utf-8")
    return str(folder)


def test_all_models_are_asked_with_the_same_prompts(tmp_path: Path, two_models: list[Path]) -> None:
    """A saved model brings the domain it was trained in; the others are asked with its prompts, or all with none's."""
    plain = {"base": str(two_models[0])}
    one = plain | {"tuned": trained_in(tmp_path / "a", "medical", 0), "again": trained_in(tmp_path / "b", "medical", 1)}
    several = one | {"other": trained_in(tmp_path / "c", "industrial", 2)}
    unset, chosen = CLIPFinetuningConfig(), CLIPFinetuningConfig(domain="scientific")
    expected = [
        (unset, plain, "general", "general"),
        (unset, one, "medical", "which tuned, again were trained in"),
        (unset, several, "general", "medical: tuned, again; industrial: other"),
        (chosen, several, "scientific", "scientific"),
    ]
    for config, models, domain, reported in expected:
        asked, sentence = shared_prompts(config, models)
        alone = resolve_for_inference(CLIPFinetuningConfig(domain=domain))
        assert asked.evaluation.prompt_templates == alone.evaluation.prompt_templates
        assert reported in sentence


def test_one_model_is_in_memory_at_a_time(tiny_data, two_models, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    loaded: list[weakref.ref] = []
    load = ModelSession.from_pretrained

    def watched(*given: Any, **more: Any) -> ModelSession:
        assert all(encoder() is None for encoder in loaded)
        session = load(*given, **more)
        loaded.append(weakref.ref(session.encoder))
        return session

    monkeypatch.setattr(ModelSession, "from_pretrained", watched)
    models = {str(index): str(folder) for index, folder in enumerate(two_models)}
    found = run_compare(CLIPFinetuningConfig(device="cpu"), models, {"tiny": str(tiny_data.folder)})
    assert len(loaded) == 2 and len(found.report.cells) == 2


def test_wrong_arguments_are_said_before_the_work(tiny_data, two_models, domainclip, tmp_path) -> None:  # type: ignore[no-untyped-def]
    given = ["compare", "--model", f"a={two_models[0]}", "--data", tiny_data.folder, "device=cpu"]
    for more, message in (
        (["--split", "tset"], "Invalid split"),
        (["--reference", "b"], "choose one of a"),
        (["--metric", "auroc"], "Invalid metric"),
        (["--output", tiny_data.folder / "train.csv"], "cannot be written"),
    ):
        found = domainclip(*given, *more)
        assert found.exit_code == 2 and message in found.err, found.err
    nothing = domainclip("compare", "--model", two_models[0], "--data", tmp_path / "none.csv")
    assert nothing.exit_code == 2 and "Data not found" in nothing.err


def test_a_model_that_does_not_load_is_a_row_of_reasons_but_not_the_reference(  # type: ignore[no-untyped-def]
    tiny_data, two_models, domainclip, tmp_path
) -> None:
    given = [
        "--data",
        tiny_data.folder,
        "--json",
        "device=cpu",
        "--model",
        f"good={two_models[0]}",
        "--model",
        f"broken={tmp_path}",
    ]
    found = domainclip("compare", *given)
    assert found.exit_code == 0, found.err
    cells = json.loads(found.out)["cells"]
    assert [cell["verdict"] for cell in cells] == ["reference", "not evaluated"]
    assert "is empty. A model is a folder with config.json" in cells[1]["reason"]
    assert domainclip("compare", *given, "--reference", "broken").exit_code == 2


def test_an_unreadable_image_is_left_out_for_all_models(tiny_data, two_models, domainclip, tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = tmp_path / "rows.csv"
    (tmp_path / "broken.png").write_bytes(b"no image")
    rows = [("image_path", "caption", "label", "group")]
    rows += [
        (str(pair.image_path), pair.caption, pair.label, f"g{index // 2}")
        for index, pair in enumerate(tiny_data.pairs("test"))
    ]
    rows.append(("broken.png", "brick", "brick", "g9"))
    with open(table, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    found = domainclip(
        "compare",
        "--data",
        table,
        "--split",
        "all",
        "--json",
        "device=cpu",
        *(part for folder in two_models for part in ("--model", folder)),
    )
    assert found.exit_code == 0, found.err
    content = json.loads(found.out)
    (column,) = content["data"]
    assert (column["n_images"], column["n_skipped"], column["unit"], column["n_units"]) == (6, 1, "group", 3)
    assert all(math.isclose(cell["metrics"]["n_classified"], 6) for cell in content["cells"])
