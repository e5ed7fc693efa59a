"""Several models on several data sets: statistics against plain loops, the command, the page against its JSON."""

from __future__ import annotations

import csv
import json
import math
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import f1_score, recall_score

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.domain_files import load_domain
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.evaluation.compare_html import compare_html
from domainclip.evaluation.compare_matrix import ModelOnSet, SetScores, compare_matrix
from domainclip.evaluation.compare_plot import plot_matrix
from domainclip.evaluation.compare_text import compare_markdown
from domainclip.evaluation.evaluators import RetrievalEvaluator
from domainclip.evaluation.metric_sums import UnitSums, unit_sums
from domainclip.evaluation.paired_bootstrap import holm, metric_interval, paired_difference, resampled
from domainclip.finetune.captions import class_templates
from domainclip.finetune.compare import named, run_compare, shared_prompts
from domainclip.finetune.controller import CLIPFinetuningController
from domainclip.models.tiny import make_tiny_clip


def shares(right: np.ndarray) -> UnitSums:
    """The accuracy of pictures that are units of their own."""
    columns = np.stack([right.astype(float), np.ones(len(right))], axis=1)
    return UnitSums(columns, lambda totals: totals[..., 0] / totals[..., 1])


def answers(seed: int, n: int = 60, n_classes: int = 4) -> dict:
    rng = np.random.default_rng(seed)
    labels = [f"class {number}" for number in range(n_classes)]
    truth = rng.choice(n_classes, n, p=[0.6, 0.2, 0.15, 0.05])
    predicted = np.where(rng.random(n) < 0.6, truth, rng.integers(n_classes, size=n))
    return {
        "labels": labels,
        "image_paths": [f"{number}.png" for number in range(n)],
        "targets": [labels[number] for number in truth],
        "predictions": [labels[number] for number in predicted],
    }


# --- metrics as sums ---


def test_sums_give_the_metrics_that_scikit_learn_gives() -> None:
    found = answers(0)
    units = {Path(path): place // 7 for place, path in enumerate(found["image_paths"])}
    truth, predicted = found["targets"], found["predictions"]
    present = sorted(set(truth))
    options = {"labels": present, "average": "macro", "zero_division": 0.0}
    expected = {
        "acc1": np.mean(np.array(truth) == np.array(predicted)),
        "mean_per_class_recall": recall_score(truth, predicted, **options),
        "macro_f1": f1_score(truth, predicted, **options),
    }
    for name, value in expected.items():
        assert unit_sums(name, {"classification": found}, units, None).value == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("name", ["acc1", "mean_per_class_recall", "macro_f1"])
def test_resampled_metrics_equal_those_of_the_resampled_rows(name: str) -> None:
    """Weights on sums against scikit-learn on the rows themselves, drawn group by group."""
    found = answers(1)
    groups = [place // 7 for place in range(60)]
    units = {Path(path): group for path, group in zip(found["image_paths"], groups, strict=True)}
    model = unit_sums(name, {"classification": found}, units, None)
    truth, predicted = np.array(found["targets"]), np.array(found["predictions"])
    rng = np.random.default_rng(3)
    for _ in range(20):
        drawn = rng.integers(9, size=9)
        rows = np.concatenate([np.flatnonzero(np.array(groups) == group) for group in drawn])
        options = {"labels": sorted(set(truth[rows])), "average": "macro", "zero_division": 0.0}
        if name == "acc1":
            expected = np.mean(truth[rows] == predicted[rows])
        else:
            score = recall_score if name == "mean_per_class_recall" else f1_score
            expected = score(truth[rows], predicted[rows], **options)
        counts = np.bincount(drawn, minlength=9)
        assert model.metric(counts @ model.sums) == pytest.approx(expected, abs=1e-12)


def test_retrieval_sums_equal_the_shares_of_queries() -> None:
    """Two pictures share a caption and one picture has two: the full sample must still give the plain R@1."""
    rows = [("a", "red"), ("b", "red"), ("c", "green"), ("c", "lime"), ("d", "blue")]
    pairs = [ImageTextPair(Path(picture), caption) for picture, caption in rows]
    hits = RetrievalEvaluator(pairs).hits.numpy()
    found = {"image_paths": ["a", "b", "c", "d"], "i2t_ranks": [1, 2, 1, 1], "t2i_ranks": [1, 3, 1, 2]}
    units = {Path(name): number for number, name in enumerate("abcd")}
    value = {
        name: unit_sums(name, {"retrieval": found}, units, hits).value for name in ("i2t_R@1", "t2i_R@1", "mean_R@1")
    }
    assert value == pytest.approx({"i2t_R@1": 3 / 4, "t2i_R@1": 2 / 4, "mean_R@1": 5 / 8})
    # Captions: red (right) is half a's and half b's, green (wrong) and lime (right) are c's, blue (wrong) is d's.
    sums = unit_sums("t2i_R@1", {"retrieval": found}, units, hits).sums
    assert sums.tolist() == [[0.5, 0.5], [0.5, 0.5], [1, 2], [0, 1]]


def test_rows_without_a_label_are_no_units() -> None:
    found = answers(2, n=10)
    units = {Path(path): place for place, path in enumerate([*found["image_paths"], "unlabelled.png"])}
    assert len(unit_sums("acc1", {"classification": found}, units, None).sums) == 10


def test_a_metric_that_cannot_be_had_says_why() -> None:
    notes = {"notes": ["No classification: no row has a label"]}
    with pytest.raises(DataError, match="no row has a label"):
        unit_sums("acc1", notes, {Path("a"): 0}, None)
    with pytest.raises(ConfigurationError, match="Invalid metric 'auroc'"):
        unit_sums("auroc", notes, {Path("a"): 0}, None)


# --- the bootstrap and its test ---


def test_the_test_and_the_intervals_equal_a_plain_loop() -> None:
    """Drawing unit by unit, with other random numbers: equal up to the noise of 4,000 resamples."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 6, size=30)
    group = np.repeat(np.arange(30), sizes)
    before, after = rng.random(len(group)) < 0.5, rng.random(len(group)) < 0.62
    models = [
        UnitSums(np.stack([np.bincount(group, right, 30), np.bincount(group, minlength=30)], axis=1).astype(float),
                 lambda totals: totals[..., 0] / totals[..., 1])
        for right in (before, after)
    ]  # fmt: skip
    draws = resampled(models, 4000, seed=1)
    found = paired_difference(*models, *draws)
    assert found is not None

    loop = np.random.default_rng(77)
    firsts, differences = [], []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(group == unit) for unit in loop.integers(30, size=30)])
        firsts.append(before[rows].mean())
        differences.append(after[rows].mean() - before[rows].mean())
    change = after.mean() - before.mean()
    p_value = np.mean(np.abs(np.array(differences) - change) >= abs(change))
    assert found.change == pytest.approx(change, abs=1e-12)
    assert found.p_value == pytest.approx(p_value, abs=0.025)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])), abs=0.015)
    interval = metric_interval(models[0], draws[0])
    assert interval is not None and interval.method == "bootstrap"
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(firsts, [0.025, 0.975])), abs=0.015)


def test_every_model_sees_the_same_resamples() -> None:
    right = np.random.default_rng(0).random(50) < 0.7
    first, second, other = resampled([shares(right), shares(right), shares(~right)], 200, seed=4)
    assert np.array_equal(first, second)
    assert first + other == pytest.approx(np.ones(200))


def test_groups_widen_the_interval() -> None:
    """Four hundred pictures of a hundred patients whose pictures agree are worth a hundred."""
    patients = np.random.default_rng(1).random(100) < 0.6
    apart = shares(np.repeat(patients, 4))
    together = UnitSums(np.stack([patients * 4.0, np.full(100, 4.0)], axis=1), apart.metric)
    widths = []
    for model in (apart, together):
        found = metric_interval(model, resampled([model], 4000)[0])
        assert found is not None
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.15)  # the square root of four


def test_few_differing_units_cannot_be_clear() -> None:
    """The bootstrap alone gives 5 gained of 5 changed a p of about 0.04; a sign test can never go below 2/32."""
    before, after = np.zeros(100, dtype=bool), np.arange(100) < 5
    models = [shares(before), shares(after)]
    found = paired_difference(*models, *resampled(models, 10_000))
    assert found is not None and found.n_differing == 5
    assert found.p_value == pytest.approx(binomtest(5, 5).pvalue)
    same = paired_difference(models[0], models[0], *resampled([models[0]] * 2, 1000))
    assert same is not None and (same.p_value, same.change, same.n_differing) == (1.0, 0.0, 0)


def test_the_test_keeps_its_error_rate() -> None:
    """Of two models that are equally good, 5 % may be called different; a hundred pictures, three hundred trials."""
    rng = np.random.default_rng(11)
    false = 0
    for trial in range(300):
        models = [shares(rng.random(100) < 0.7) for _ in range(2)]
        found = paired_difference(*models, *resampled(models, 1000, seed=trial))
        assert found is not None
        false += found.p_value < 0.05
    assert binomtest(false, 300, 0.05, alternative="greater").pvalue > 0.01


def test_a_perfect_score_has_wilsons_interval_and_one_unit_none() -> None:
    perfect = shares(np.ones(20, dtype=bool))
    found = metric_interval(perfect, resampled([perfect], 100)[0])
    reference = binomtest(20, 20).proportion_ci(method="wilson")
    assert found is not None and (found.low, found.high, found.method) == (pytest.approx(reference.low), 1.0, "wilson")
    alone = UnitSums(np.array([[3.0, 4.0]]), perfect.metric)
    assert metric_interval(alone, resampled([alone], 100)[0]) is None
    assert paired_difference(alone, alone, *resampled([alone, alone], 100)) is None


def test_models_on_other_units_cannot_be_paired() -> None:
    with pytest.raises(ShapeError, match="same units"):
        resampled([shares(np.ones(3, dtype=bool)), shares(np.ones(4, dtype=bool))])


def test_holm_by_hand() -> None:
    # Sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04, and the last may not fall below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


# --- the matrix ---


def three_models(n: int = 200) -> dict:
    """A reference at 60 %, a model that is right on 30 more, one wrong on 40 more, one that swaps four for four."""
    base = np.arange(n) < 0.6 * n
    better, worse, same = base.copy(), base.copy(), base.copy()
    better[int(0.6 * n) : int(0.6 * n) + 30] = True
    worse[:40] = False
    same[:4] = False
    same[-4:] = True
    models = {"base": base, "tuned": better, "forgetful": worse, "twin <&> 'of base'": same}
    scores = {name: ModelOnSet(shares(right), {"acc1": float(right.mean())}) for name, right in models.items()}
    unreadable = {name: ModelOnSet(reason="it has <one> class") for name in models}
    partly = {**scores, "tuned": ModelOnSet(reason="NaN in its scores")}
    sets = [
        SetScores("cells", "data/cells", "acc1", scores, facts={"n_pictures": n, "n_rows": n}),
        SetScores("boards & <more>", "data/boards", "", unreadable),
        SetScores("pollen", "data/pollen", "acc1", partly, "group", {"n_pictures": n, "n_set_aside": 2}),
    ]
    content = compare_matrix({name: f"models/{name}" for name in models}, sets, "base", seed=0)
    return {"split": "test", **content}


def verdicts(content: dict, data: str) -> list[str]:
    return [cell["verdict"] for cell in content["cells"] if cell["data"] == data]


def test_verdicts() -> None:
    content = three_models()
    assert verdicts(content, "cells") == ["reference", "better", "worse", "no difference"]
    assert verdicts(content, "boards & <more>") == ["not evaluated"] * 4
    assert verdicts(content, "pollen") == ["reference", "not evaluated", "worse", "no difference"]
    assert content["method"]["tests"] == 5
    tested = [cell for cell in content["cells"] if cell["p_value"] is not None]
    assert [cell["p_adjusted"] for cell in tested] == holm([cell["p_value"] for cell in tested])
    for cell in tested:
        assert cell["p_adjusted"] >= cell["p_value"]


def test_the_correction_can_take_a_verdict_back() -> None:
    """A p value of about 0.008 is clear alone and not among ten."""
    base = np.arange(100) < 60
    tuned = np.arange(100) < 68  # 8 gained, none lost: p at least 2/256
    alone = SetScores("one", "one", "acc1", {"base": ModelOnSet(shares(base)), "tuned": ModelOnSet(shares(tuned))})
    many = [SetScores(f"set {place}", "", "acc1", alone.scores) for place in range(10)]
    models = {"base": "", "tuned": ""}
    single = compare_matrix(models, [alone], "base")["cells"][1]
    assert (single["verdict"], single["p_value"] < 0.05) == ("better", True)
    content = compare_matrix(models, many, "base")
    assert {cell["verdict"] for cell in content["cells"]} == {"reference", "no difference"}


def test_without_the_references_figure_nothing_is_tested() -> None:
    scores = {"base": ModelOnSet(reason="broken"), "tuned": ModelOnSet(shares(np.arange(9) < 5))}
    content = compare_matrix({"base": "", "tuned": ""}, [SetScores("s", "", "acc1", scores)], "base")
    assert [cell["verdict"] for cell in content["cells"]] == ["not evaluated", "not tested"]
    assert content["method"]["tests"] == 0 and content["cells"][1]["low"] is not None
    assert any("larger than the intervals say" in note for note in content["data"][0]["notes"])
    with pytest.raises(ConfigurationError, match="none of the models"):
        compare_matrix({"base": ""}, [], "other")


class Page(HTMLParser):
    """The cells' text of each table, by its class, and what the page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[tuple[str, list[list[str]]]] = []
        self.fetched: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.fetched += [value for name in ("src", "href") if (value := values.get(name))]
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append((values.get("class") or "", []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
        elif tag in ("div", "br") and self.tables and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # every element is closed in its turn

    def handle_data(self, data: str) -> None:
        if "table" in self.open and self.open[-1] != "table" and self.tables[-1][1] and self.tables[-1][1][-1]:
            self.tables[-1][1][-1][-1] += data

    def named(self, name: str) -> list[list[list[str]]]:
        return [rows for kind, rows in self.tables if kind == name]


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.fetched == []
    return page


def assert_page_shows(content: dict, text: str) -> None:
    page = parsed(text)
    (matrix,) = page.named("matrix")
    by_place = {(cell["model"], cell["data"]): cell for cell in content["cells"]}
    assert [row[0] for row in matrix[1:]] == [model["name"] for model in content["models"]]
    for model, row in zip(content["models"], matrix[1:], strict=True):
        for column, head, shown in zip(content["data"], matrix[0][1:], row[1:], strict=True):
            assert head.startswith(column["name"])
            cell = by_place[model["name"], column["name"]]
            words = shown.replace("−", "-").replace("±", "").split()
            if cell["value"] is None:
                assert "not evaluated" in shown
                continue
            assert float(words[0].rstrip("%")) == pytest.approx(100 * cell["value"], abs=0.0501)
            low, high = words[1].split("–")
            assert [float(low), float(high)] == pytest.approx([100 * cell["low"], 100 * cell["high"]], abs=0.0501)
            if cell["change"] is not None:
                assert float(words[-2]) == pytest.approx(100 * cell["change"], abs=0.0501)
    lists = [*page.named("list"), *page.named("list untold")]
    shown_sets = [c["name"] for c in content["data"] if any(by_place[m["name"], c["name"]]["value"] is not None
                                                            for m in content["models"])]  # fmt: skip
    assert len(lists) == len(shown_sets)
    for name, rows in zip(shown_sets, lists, strict=True):
        for row in rows[1:]:
            cell = by_place[row[0], name]
            if content["method"]["tests"]:
                assert row[-1].strip().endswith(cell["verdict"])
            if cell["p_adjusted"] is not None and cell["p_adjusted"] >= 0.001:
                assert float(row[-2]) == pytest.approx(cell["p_adjusted"], abs=0.00051)


def test_the_page_shows_what_the_json_holds() -> None:
    content = three_models()
    assert_page_shows(content, compare_html(content))
    markdown = compare_markdown(content)
    assert (
        "base" in markdown and "| tuned |" in markdown and "all models: not evaluated. it has <one> class" in markdown
    )
    assert "tuned: better on cells; not evaluated on boards & <more>, pollen." in markdown


@pytest.mark.parametrize(("n_models", "n_sets"), [(1, 1), (10, 10)])
def test_one_or_ten_of_each_are_drawn(n_models: int, n_sets: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {f"a model with a rather long name, number {place}": "" for place in range(n_models)}
    sets = [
        SetScores(f"ein_sehr_langer_name_ohne_leerzeichen_{place}", "", "acc1",
                  {name: ModelOnSet(shares(rng.random(40) < 0.5)) for name in names}, facts={"n_pictures": 40})
        for place in range(n_sets)
    ]  # fmt: skip
    content = {"split": "test", **compare_matrix(names, sets, next(iter(names)))}
    assert_page_shows(content, compare_html(content))
    with Image.open(plot_matrix(content, tmp_path / "matrix.png")) as picture:
        assert picture.width > 100 * n_sets and picture.height > 60 * n_models


# --- names ---


def test_names_are_given_or_the_end_that_tells_apart(tmp_path: Path) -> None:
    assert named(["runs/a/model", "runs/b/model", "mine=c", "openai/clip"], "model") == {
        "a/model": "runs/a/model", "b/model": "runs/b/model", "mine": "c", "clip": "openai/clip",
    }  # fmt: skip
    odd = tmp_path / "rate=1e-5"
    odd.mkdir()
    assert named([str(odd)], "model") == {"rate=1e-5": str(odd)}
    for wrong, message in ((["a", "b=a", "b=c"], "Two of --model"), (["=x"], "NAME=PATH"), ([], "at least one"),
                           (["a", "a"], "Two of --model")):  # fmt: skip
        with pytest.raises(ConfigurationError, match=message):
            named(wrong, "model")


# --- the command ---


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"clip_{seed}")
        make_tiny_clip(seed).save(folder)
        folders.append(folder)
    return folders


def one_class(tmp_path: Path, pictures: Path) -> Path:
    table = tmp_path / "one_class.csv"
    with open(table, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_path", "caption", "label"])
        writer.writerows([(path, "brick", "brick") for path in sorted(pictures.glob("brick*"))])
    return table


def test_the_command(tiny_data, two_models, domainclip, tmp_path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out"
    single = one_class(tmp_path, tiny_data.folder / "images")
    arguments = [
        "compare", "--model", f"base={two_models[0]}", "--model", f"other={two_models[1]}", "--data", tiny_data.folder,
        "--data", f"one class={single}", "--data", tmp_path / "missing.csv", "--output", out, "--split", "all",
        "device=cpu",
    ]  # fmt: skip
    found = domainclip(*arguments, "--json")
    assert found.exit_code == 0, found.err
    content = json.loads(found.out)
    assert content == json.loads((out / "compare.json").read_text(encoding="utf-8"))
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.md", "compare.html", "matrix.png"}
    cells = {(cell["model"], cell["data"]): cell for cell in content["cells"]}
    name = tiny_data.folder.name
    for label, folder in zip(("base", "other"), two_models, strict=True):
        alone = domainclip("evaluate", "--model", folder, "--data", tiny_data.folder, "--split", "all", "--json",
                           "device=cpu")  # fmt: skip
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
    make_tiny_clip(seed).save(folder)
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
    for config, models, domain, told in expected:
        asked, sentence = shared_prompts(config, models)
        assert class_templates(asked) == class_templates(CLIPFinetuningConfig(domain=domain))
        assert told in sentence


def test_one_model_is_in_memory_at_a_time(tiny_data, two_models, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    loaded: list[weakref.ref] = []
    setup = CLIPFinetuningController.setup

    def watched(self: CLIPFinetuningController) -> None:
        assert all(encoder() is None for encoder in loaded)
        setup(self)
        assert self.model is not None
        loaded.append(weakref.ref(self.model))

    monkeypatch.setattr(CLIPFinetuningController, "setup", watched)
    models = {str(place): str(folder) for place, folder in enumerate(two_models)}
    found = run_compare(CLIPFinetuningConfig(device="cpu"), models, {"tiny": str(tiny_data.folder)})
    assert len(loaded) == 2 and len(found.content["cells"]) == 2


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
    assert nothing.exit_code == 2 and "No data set can be compared" in nothing.err


def test_a_model_that_does_not_load_is_a_row_of_reasons_but_not_the_reference(  # type: ignore[no-untyped-def]
    tiny_data, two_models, domainclip, tmp_path
) -> None:
    given = ["--data", tiny_data.folder, "--json", "device=cpu", "--model", f"good={two_models[0]}",
             "--model", f"broken={tmp_path}"]  # fmt: skip
    found = domainclip("compare", *given)
    assert found.exit_code == 0, found.err
    cells = json.loads(found.out)["cells"]
    assert [cell["verdict"] for cell in cells] == ["reference", "not evaluated"]
    assert "Cannot load" in cells[1]["reason"]
    assert domainclip("compare", *given, "--reference", "broken").exit_code == 2


def test_an_unreadable_picture_is_left_out_for_all_models(tiny_data, two_models, domainclip, tmp_path) -> None:  # type: ignore[no-untyped-def]
    table = tmp_path / "rows.csv"
    (tmp_path / "broken.png").write_bytes(b"no picture")
    rows = [("image_path", "caption", "label", "group")]
    rows += [(str(pair.image_path), pair.caption, pair.label, f"g{place // 2}")
             for place, pair in enumerate(tiny_data.pairs("test"))]  # fmt: skip
    rows.append(("broken.png", "brick", "brick", "g9"))
    with open(table, "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows(rows)
    found = domainclip("compare", "--data", table, "--split", "all", "--json", "device=cpu",
                       *(part for folder in two_models for part in ("--model", folder)))  # fmt: skip
    assert found.exit_code == 0, found.err
    content = json.loads(found.out)
    (column,) = content["data"]
    assert (column["n_pictures"], column["n_set_aside"], column["unit"], column["n_units"]) == (6, 1, "group", 3)
    assert all(math.isclose(cell["metrics"]["n_classified"], 6) for cell in content["cells"])
