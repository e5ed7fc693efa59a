"""``domainclip align report``: its figures and its files."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from align_cases import RANKING, make_tiny_engine
from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, ShapeError
from domainclip.evaluation.alignment import AlignmentRows, Embedded, Metric, chance, embed, measure, query_order
from domainclip.evaluation.evaluators import RetrievalEvaluator
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.retrieval import AlignmentMetrics
from domainclip.pipelines.align import short_names
from domainclip.reports.alignment_report import write_alignment
from domainclip.reports.plots.alignment import PLOT_FILES, shown_queries
from domainclip.retrieval.similarity_computer import SimilarityComputer
from domainclip.similarity import SIMILARITIES

pytestmark = pytest.mark.slow

ONE_MODEL = {name for name in PLOT_FILES if "_compared" not in name}


@pytest.fixture(scope="module")
def tiny_engine():
    return make_tiny_engine()


def random_rows(n_images: int, n_texts: int, per_image: int, seed: int = 0, dim: int = 8):
    """Rows in which images have several captions and captions several images, and unit embeddings for them."""
    rng = np.random.default_rng(seed)
    pairs = []
    for image in range(n_images):
        for text in rng.choice(n_texts, per_image, replace=False):
            label = None if image % 7 == 6 else f"class {image % 3}"
            pairs.append(ImageTextPair(f"{image}.png", f"caption {text}", label))
    rows = AlignmentRows(pairs)
    images, texts = (
        torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, dim))).float(), dim=-1)
        for n in (len(rows.paths), len(rows.captions))
    )
    return pairs, rows, Embedded("random", images, texts)


def targets_of(pairs, rows: AlignmentRows) -> torch.Tensor:
    """By a plain loop over the rows."""
    matrix = torch.zeros(len(rows.paths), len(rows.captions), dtype=torch.bool)
    for pair in pairs:
        matrix[rows.paths.index(pair.image_path), rows.captions.index(pair.caption)] = True
    return matrix


# --- figures ---


@pytest.mark.parametrize("name", ["cosine", "dot", "euclidean", "bilinear"])
def test_figures_are_those_of_the_whole_matrix(name, monkeypatch):
    pairs, rows, model = random_rows(41, 23, 2)
    monkeypatch.setattr("domainclip.evaluation.alignment._BLOCK", 23 * 5)  # five images at a time
    found = measure(rows, model, Metric(name), seed=1)
    targets = targets_of(pairs, rows)
    used = "cosine" if name == "bilinear" else name
    matrix = SimilarityComputer(used).compute(model.images.double(), model.texts.double())
    expected = AlignmentMetrics.compute_all(matrix, targets)
    for key in (*RANKING, "alignment_margin"):
        assert found.metrics[key] == pytest.approx(expected[key], abs=1e-6), key
    values, hits = matrix.numpy().ravel(), targets.numpy().ravel()
    assert found.metrics["auroc"] == pytest.approx(roc_auc_score(hits, values))
    assert found.metrics["mean_miss"] == pytest.approx(values[~hits].mean(), abs=1e-6)
    assert found.metrics["modality_gap"] == pytest.approx(modality_gap(model.images, model.texts))
    # Each pair, each image's best wrong caption, and the classes, by plain loops.
    for index, (image, caption) in enumerate(rows.hits.tolist()):
        own = matrix[image, caption]
        rank = 1 + sum(bool(matrix[image, c] >= own) for c in range(len(rows.captions)) if not targets[image, c])
        assert int(found.pair_ranks[index]) == rank
        assert float(found.pair_values[index]) == pytest.approx(float(own), abs=1e-6)
        wrong = [c for c in range(len(rows.captions)) if not targets[image, c]]
        assert int(found.images.best_miss[image]) == max(wrong, key=lambda c: float(matrix[image, c]))
    for row, label in enumerate(rows.classes):
        for column, other in enumerate(rows.classes):
            images = [i for i, own in enumerate(rows.labels) if own == label]
            captions = {rows.captions.index(pair.caption) for pair in pairs if label_of(rows, pair) == other}
            mean = np.mean([float(matrix[i, c]) for i in images for c in captions])
            assert found.class_similarity[row, column] == pytest.approx(mean, abs=1e-6)


def label_of(rows: AlignmentRows, pair: ImageTextPair) -> str | None:
    return rows.labels[rows.paths.index(pair.image_path)]


def test_figures_are_those_of_the_evaluation(tiny_data, tiny_engine):
    pairs = tiny_data.pairs("train")
    rows = AlignmentRows(pairs)
    found = measure(rows, embed(rows, tiny_engine, "tiny"), Metric("cosine"), seed=0)
    expected = RetrievalEvaluator(pairs).evaluate(tiny_engine)
    for key in (*RANKING, "mean_R@1"):
        assert found.metrics[key] == expected.metrics[key]
    assert found.images.ranks.tolist() == expected.details["retrieval"]["i2t_ranks"]
    counts = rows.counts()
    captions = [pair.caption for pair in pairs]
    shared = {caption for caption in captions if captions.count(caption) > 1}
    assert counts["shared_captions"] == len(shared) == 3
    assert counts["images_with_a_shared_caption"] == sum(caption in shared for caption in captions)
    assert counts["most_images_of_a_caption"] == max(captions.count(caption) for caption in captions)


def test_chance_is_what_random_orders_reach():
    pairs, rows, _ = random_rows(9, 6, 2, seed=3)
    targets = targets_of(pairs, rows)
    rng = np.random.default_rng(0)
    drawn: dict[str, list[float]] = {}
    for _ in range(1500):
        scores = torch.from_numpy(rng.permutation(targets.numel()).reshape(targets.shape)).double()
        for key, value in AlignmentMetrics.compute_all(scores, targets).items():
            drawn.setdefault(key, []).append(value)
    expected = chance(rows)
    for key in ("i2t_R@1", "i2t_R@5", "i2t_MRR", "t2i_R@1", "t2i_R@5", "t2i_MRR"):
        assert expected[key] == pytest.approx(np.mean(drawn[key]), abs=0.015), key
    assert expected["i2t_median_rank"] == pytest.approx(np.median(drawn["i2t_median_rank"]), abs=1)


def test_confused_classes_by_a_plain_loop():
    pairs, rows, model = random_rows(40, 25, 1, seed=5)
    found = measure(rows, model, Metric("cosine"), seed=0)
    matrix = (model.images @ model.texts.T).numpy()
    expected: dict[tuple[str, str], int] = {}
    for image, label in enumerate(rows.labels):
        answer = int(matrix[image].argmax())
        classes = [label_of(rows, pair) for pair in pairs if pair.caption == rows.captions[answer]]
        known = sorted(own for own in classes if own is not None)
        if label is not None and known and label not in known:
            taken = max(dict.fromkeys(known), key=known.count)
            expected[label, taken] = expected.get((label, taken), 0) + 1
    assert expected
    got = {(item["class"], item["taken_for"]): item["n"] for item in found.confused if item["direction"] == "i2t"}
    assert got == expected
    assert [item["n"] for item in found.confused] == sorted((item["n"] for item in found.confused), reverse=True)


def test_sample_is_drawn_by_seed_and_every_item_has_a_partner():
    _, rows, _ = random_rows(60, 50, 2)
    images, texts = rows.sample(seed=4, most=20)
    assert 0 < len(images) <= 20
    assert 0 < len(texts) <= 20
    targets = rows.targets(images, texts)
    assert targets.any(dim=0).all()
    assert targets.any(dim=1).all()
    assert all(torch.equal(a, b) for a, b in zip((images, texts), rows.sample(seed=4, most=20), strict=True))
    assert not torch.equal(images, rows.sample(seed=5, most=20)[0])
    assert [len(part) for part in rows.sample(seed=4)] == [len(rows.paths), len(rows.captions)]


def test_queries_run_from_the_best_to_the_worst():
    _, rows, model = random_rows(30, 20, 1)
    answers = measure(rows, model, Metric("cosine"), seed=0).images
    order = query_order(answers)
    key = [(int(answers.ranks[i]), float(answers.margins()[i])) for i in order]
    assert key == sorted(key)
    shown = shown_queries(order, 6)
    assert (len(shown), shown[0], shown[-1]) == (6, int(order[0]), int(order[-1]))
    assert shown_queries(order[:3], 6) == order[:3].tolist()


def test_bad_embeddings_and_too_few_rows():
    _, rows, model = random_rows(5, 4, 1)
    broken = Embedded("broken", model.images * torch.nan, model.texts)
    with pytest.raises(ShapeError, match="NaN"):
        measure(rows, broken, Metric("cosine"), seed=0)
    with pytest.raises(ShapeError, match="embed the same rows"):
        measure(rows, Embedded("short", model.images[:-1], model.texts), Metric("cosine"), seed=0)
    with pytest.raises(DataError, match="two different captions"):
        AlignmentRows([ImageTextPair("a.png", "one"), ImageTextPair("b.png", "One ")])


def test_names_tell_two_models_apart():
    assert short_names("runs/a/model", None)[0] == "model"
    assert short_names("runs/a/model", "runs/b/model") == ("a/model", "b/model")
    assert short_names("org/clip", "tiny") == ("clip", "tiny")
    assert short_names("tiny", "tiny") == ("tiny", "tiny (again)")


def test_a_metric_of_the_users_own_ranks_by_itself(monkeypatch):
    """One that does not treat both sides alike, in both directions."""
    weights = torch.from_numpy(np.random.default_rng(2).normal(size=(8, 8))).float()
    monkeypatch.setitem(SIMILARITIES._entries, "one_way", lambda images, texts: images @ weights @ texts.T)
    pairs, rows, model = random_rows(30, 20, 1)
    found = measure(rows, model, Metric("one_way"), seed=0)
    expected = AlignmentMetrics.compute_all(model.images @ weights @ model.texts.T, targets_of(pairs, rows))
    for key in (*RANKING, "alignment_margin"):
        assert found.metrics[key] == pytest.approx(expected[key], abs=1e-6), key


# --- files ---


def table_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "pairs.csv", encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_report_of_rows_where_everything_belongs_together(tmp_path, tiny_data):
    """No misses: nothing to separate, and nothing that fails."""
    paths = [pair.image_path for pair in tiny_data.pairs("test")[:2]]
    rows = AlignmentRows([ImageTextPair(path, caption) for path in paths for caption in ("one | two", "two")])
    model = Embedded("m", torch.eye(4)[:2], torch.eye(4)[:2])
    report = write_alignment(
        tmp_path, rows, model, None, similarity_metric="euclidean", top_k=5, seed=0, about={"split": "test"}
    )
    content = report.to_dict()
    assert content["metrics"]["model"]["auroc"] is None
    assert content["metrics"]["model"]["i2t_R@1"] == 1
    assert "plots/distribution.png" not in content["plots"]
    assert "plots/class_similarity.png" not in content["plots"]
    assert "nothing to compare" in (tmp_path / "report.md").read_text()
    assert [row["best_wrong_caption"] for row in table_of(tmp_path)] == [""] * 4


@pytest.fixture(scope="module")
def compared(tiny_data, tmp_path_factory):
    """The folder of a report of two models, made over an earlier one, and what was in the way."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "plots").mkdir()
    (folder / "notes.txt").write_text("the user's own")
    (folder / "plots" / "mine.png").write_text("the user's own")
    (folder / "plots" / "distribution_compared.png").write_text("of an earlier report")
    (folder / "alignment.json").write_text("{}")  # says that the plots are of one
    return folder


def test_report_and_compare_by_the_command(domainclip, tiny_data, tiny_engine, compared):
    options = ["align", "report", "-d", tiny_data.folder, "-m", "tiny", "-o", compared, "device=cpu"]
    result = domainclip(*options, "--json")
    assert result.exit_code == 0, result.err
    content = json.loads(result.out)
    assert content == json.loads((compared / "alignment.json").read_text())
    assert {f"plots/{path.name}" for path in (compared / "plots").iterdir()} == ONE_MODEL | {"plots/mine.png"}
    assert set(content["plots"]) == ONE_MODEL
    assert {path.name for path in compared.iterdir()} == {
        ".domainclip.json",
        "report.md",
        "alignment.json",
        "pairs.csv",
        "plots",
        "notes.txt",
    }
    expected = RetrievalEvaluator(tiny_data.pairs("test")).evaluate(tiny_engine).metrics
    for key in RANKING:
        assert content["metrics"]["model"][key] == expected[key]

    # Against itself: no difference anywhere, and every link of the report leads to a file.
    result = domainclip(*options, "--compare", "tiny", "--top-k", "50", "similarity_metric=euclidean")
    assert result.exit_code == 0, result.err
    assert "chance" in result.out
    content = json.loads((compared / "alignment.json").read_text())
    assert set(content["plots"]) == set(PLOT_FILES)
    assert content["names"] == {"model": "tiny", "compared": "tiny (again)"}
    assert content["difference"]["i2t_MRR"] == 0
    assert content["changes"]["i2t_R@1"]["change"] == 0
    text = (compared / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {link for link in links if link.endswith(".png")} == set(PLOT_FILES)
    assert all((compared / link).stat().st_size > 100 for link in links)
    assert (compared / "plots" / "mine.png").read_text() == "the user's own"
    assert str(content["counts"]["n_texts"]) + " different captions" in text

    rows = table_of(compared)
    beaten = [float(row["wrong_beats_right_by"]) for row in rows]
    assert beaten == sorted(beaten, reverse=True)
    assert {(row["image_path"], row["caption"]) for row in rows} == {
        (str(pair.image_path), pair.caption) for pair in tiny_data.pairs("test")
    }
    for row in rows:
        gap = float(row["best_wrong_similarity"]) - float(row["similarity"])
        assert float(row["wrong_beats_right_by"]) == pytest.approx(gap, abs=2e-6)
        assert (int(row["rank"]) == 1) == (gap < 0)
        assert row["rank"] == row["compared_rank"]
        assert float(row["similarity"]) <= 0  # a negative distance


def test_what_the_data_say_of_themselves_is_told(domainclip, tiny_data, tmp_path, monkeypatch):
    """An image of the test that was trained on makes every figure too good."""
    monkeypatch.setattr("domainclip.reports.alignment_report.draw", lambda *_: [])
    lines = ["image_path,caption", *(f"{pair.image_path},{pair.caption}" for pair in tiny_data.pairs("test"))]
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text("\n".join(lines))
    out = tmp_path / "out"
    result = domainclip("align", "report", "-d", tmp_path, "-m", "tiny", "-o", out, "device=cpu")
    assert result.exit_code == 0, result.err
    notes = json.loads((out / "alignment.json").read_text())["notes"]
    shared = next(note for note in notes if "train and test" in note)
    assert shared in " ".join(result.out.split())
    assert f"- {shared}" in (out / "report.md").read_text()


def test_errors_through_the_command(domainclip, tiny_data, tmp_path):
    def fails(*arguments: object) -> str:
        result = domainclip("align", "report", *arguments)
        assert result.exit_code == 2
        return result.err

    usual = ["-d", tiny_data.folder, "-m", "tiny", "-o", tmp_path / "out"]
    assert "Invalid split 'tset'" in fails(*usual, "--split", "tset")
    assert "top-k" in fails(*usual, "--top-k", "0")
    assert "Invalid metric 'cosin'" in fails(*usual, "similarity_metric=cosin")
    table = tmp_path / "train.csv"
    image = tiny_data.pairs("test")[0].image_path
    table.write_text(f"image_path,caption\n{image},one\n{tiny_data.pairs('test')[1].image_path},ONE\n")
    one_caption = ["-d", table, "-m", "tiny", "-o", tmp_path / "out", "--split", "all"]
    assert "two different captions" in fails(*one_caption)
    assert "No valid image-text pairs in the val split" in fails(
        "-d", table, "-m", "tiny", "-o", tmp_path / "out", "--split", "val"
    )
    assert not (tmp_path / "out").exists()
    assert "no_such_model" in fails(*usual, "--compare", tmp_path / "no_such_model")
    assert "cannot be written" in fails("-d", tiny_data.folder, "-m", "tiny", "-o", table)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "report.md").write_text("# My thesis")
    assert "is not of an alignment report" in fails(*usual)
    assert (tmp_path / "out" / "report.md").read_text() == "# My thesis"


def test_a_report_cut_off_by_a_kill_is_known_as_ours(domainclip, tiny_data, tiny_engine, tmp_path, monkeypatch):
    import domainclip.reports.alignment_report as written

    def killed(*arguments):
        raise KeyboardInterrupt

    options = ["align", "report", "-d", tiny_data.folder, "-m", "tiny", "-o", tmp_path / "report", "device=cpu"]
    with monkeypatch.context() as patch:
        patch.setattr(written, "write_text", killed)  # the plots are in their place, and nothing of text
        domainclip(*options)
    assert (tmp_path / "report" / "plots").is_dir()
    assert not (tmp_path / "report" / "report.md").exists()
    result = domainclip(*options)
    assert result.exit_code == 0, result.err
