"""Plots: what they state is computed independently, and any number, length and script of labels can be drawn."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score
from torch import Tensor

from domainclip.errors import ConfigurationError, DataError, ImageError, ShapeError
from domainclip.metrics.modality_gap import modality_gap
from domainclip.metrics.separation import chance_recall, separation
from domainclip.reports.plots import curves as plots_curves
from domainclip.reports.plots.map import project
from domainclip.reports.plots.style import short_label
from domainclip.reports.plots.visualizer import AlignmentVisualizer
from domainclip.retrieval.retrieval import RetrievalHit

pytestmark = pytest.mark.slow


def unit(n: int, dim: int = 16, seed: int = 0) -> Tensor:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


def long_label(number: int) -> str:
    return f"Röntgenbild, $5 & $10, x_1^2 {{}} \\alpha – 80 Zeichen und mehr, почти одно и то же, Nr. {number}"


def message(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


def check_png(path: Path, folder: Path) -> tuple[int, int]:
    assert path.parent == folder and path.suffix == ".png"
    assert [entry.name for entry in folder.iterdir() if entry.name.endswith(".tmp")] == []
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert max(image.size) < 4500
        assert image.convert("L").getextrema() != (255, 255)
        return image.size


# --- the figures that are stated ---


@pytest.mark.parametrize("decimals", [0, 1, 6])  # few decimals make many ties
def test_separation_equals_sklearn_and_scipy(decimals: int) -> None:
    rng = np.random.default_rng(0)
    hits, misses = rng.normal(1, 1, 60).round(decimals), rng.normal(0, 1.5, 400).round(decimals)
    found = separation(hits, misses)
    truth = np.r_[np.ones(60), np.zeros(400)]
    assert found.auroc == pytest.approx(roc_auc_score(truth, np.r_[hits, misses]))
    assert found.overlap == pytest.approx(1 - ks_2samp(hits, misses, alternative="less").statistic)
    errors = (hits < found.threshold).mean() + (misses >= found.threshold).mean()
    assert found.overlap == pytest.approx(errors)


def test_separation_of_extremes() -> None:
    apart = separation(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert (apart.auroc, apart.overlap, apart.threshold) == (1.0, 0.0, 2.0)
    assert separation(np.ones(3), np.ones(5)).auroc == 0.5
    inverted = separation(np.array([0.0]), np.array([1.0]))
    assert (inverted.auroc, inverted.overlap) == (0.0, 1.0)
    with pytest.raises(ShapeError, match="1 hits and 0 misses"):
        separation(np.ones(1), np.empty(0))


def test_chance_recall_equals_the_binomial_formula_and_a_simulation() -> None:
    hits, n, max_k = [1, 3, 3, 7], 10, 10
    found = chance_recall(hits, n, max_k)
    expected = [np.mean([1 - math.comb(n - m, k) / math.comb(n, k) for m in hits]) for k in range(1, max_k + 1)]
    np.testing.assert_allclose(found, expected)
    rng = np.random.default_rng(0)
    order = rng.random((4000, n)).argsort(axis=1)
    drawn_early = [[(order[:, :m].min(axis=1) < k).mean() for m in hits] for k in range(1, max_k + 1)]
    np.testing.assert_allclose(found, np.mean(drawn_early, axis=1), atol=0.02)


def test_modality_gap_is_the_distance_of_the_means() -> None:
    images, texts = torch.randn(30, 8), torch.randn(20, 8) + 1
    sides = [side.double().numpy() for side in (images, texts)]
    means = [(side / np.linalg.norm(side, axis=1, keepdims=True)).mean(axis=0) for side in sides]
    assert modality_gap(images, texts) == pytest.approx(np.linalg.norm(means[0] - means[1]))
    assert modality_gap(images * 7, texts.numpy()) == pytest.approx(modality_gap(images, texts))
    assert modality_gap(images, images) == 0
    assert modality_gap(torch.eye(2)[:1], -torch.eye(2)[:1]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [
        (torch.ones(3), torch.ones(3, 3), "Expected 2D"),
        (torch.ones(2, 3), torch.ones(2, 4), "Embedding dimension mismatch"),
        (torch.empty(0, 3), torch.ones(2, 3), "image_embeds has no rows"),
        (torch.ones(2, 3), torch.full((2, 3), math.nan), "text_embeds contains NaN"),
    ],
)
def test_a_gap_of_nothing_is_refused(images: Tensor, texts: Tensor, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        modality_gap(images, texts)


def test_pca_keeps_distances_of_points_in_a_plane() -> None:
    plane = (
        np.random.default_rng(0).normal(size=(12, 2)) @ np.linalg.qr(np.random.default_rng(1).normal(size=(5, 2)))[0].T
    )
    found, _ = project(plane, "pca", 0)
    distances = [np.linalg.norm(rows[:, None] - rows[None], axis=-1) for rows in (plane, found)]
    np.testing.assert_allclose(distances[0], distances[1], atol=1e-9)


# --- the plots ---


@pytest.mark.parametrize("n", [1, 2, 30, 2000])
def test_matrix_of_any_size_with_any_labels(n: int, tmp_path: Path, drawn: list[Figure]) -> None:
    labels = [long_label(index) for index in range(n)]
    targets = torch.eye(n, dtype=torch.bool)
    similarity = unit(n) @ unit(n, seed=1).T
    check_png(
        AlignmentVisualizer(tmp_path).plot_similarity_matrix(similarity, labels, labels, targets=targets), tmp_path
    )
    text = message(drawn[0])
    assert ("200 of 2,000 images" in text) == (n == 2000)
    assert ("framed: belong together" in text) == (n <= 60)
    names = [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()]
    assert len(names) == len(set(names)) == {1: 1, 2: 2, 30: 30, 2000: 50}[n]
    assert all("$5 & $10" in name.replace("\n", " ") or "…" in name for name in names)


def test_labels_of_a_matrix_do_not_overlap(tmp_path: Path, drawn: list[Figure]) -> None:
    for n, m in ((2, 30), (30, 5), (61, 200)):
        AlignmentVisualizer(tmp_path).plot_similarity_matrix(
            torch.randn(n, m), [long_label(row) for row in range(n)], [long_label(row) for row in range(m)]
        )
    for figure in drawn:
        axis = figure.axes[0]
        for ticks, low, high in ((axis.get_xticklabels(), "x0", "x1"), (axis.get_yticklabels(), "y0", "y1")):
            boxes = [tick.get_window_extent() for tick in ticks if tick.get_text()]
            spans = sorted((getattr(box, low), getattr(box, high)) for box in boxes)
            assert len(spans) > 1
            assert all(end <= start + 1 for (_, end), (start, _) in itertools.pairwise(spans))


@pytest.mark.parametrize("n", [2, 30, 600])
def test_distribution_states_the_separation(n: int, tmp_path: Path, drawn: list[Figure]) -> None:
    base = unit(n)
    similarity = (base + unit(n, seed=1)) @ base.T
    path = AlignmentVisualizer(tmp_path).plot_alignment_distribution(similarity)
    check_png(path, tmp_path)
    auroc = roc_auc_score(np.eye(n).ravel(), similarity.numpy().ravel())
    assert f"AUROC {auroc:.3f}" in message(drawn[0])


def test_distribution_with_groups_and_of_a_collapsed_model(tmp_path: Path, drawn: list[Figure]) -> None:
    visualizer = AlignmentVisualizer(tmp_path / "new" / "folder")
    path = visualizer.plot_alignment_distribution(
        torch.full((3, 2), 0.7), image_groups=["a", "b", "a"], text_groups=["a", "b"], filename="same.png"
    )
    assert path == tmp_path / "new" / "folder" / "same.png" and path.is_file()
    assert "AUROC 0.500" in message(drawn[0])
    assert "3 pairs" in message(drawn[0])


@pytest.mark.parametrize("n", [1, 2, 30, 2000])
def test_recall_curves_are_the_recalls(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = unit(n, seed=2) @ unit(n, seed=3).T
    seen = {}
    real = plots_curves.draw_recall_curves

    def keep(curves: dict, chance: tuple, *rest: object) -> Path:
        seen["curves"], seen["chance"] = curves, chance
        return real(curves, chance, *rest)

    monkeypatch.setattr(plots_curves, "draw_recall_curves", keep)
    named = {"before": torch.zeros(n, n), long_label(1): similarity}
    check_png(AlignmentVisualizer(tmp_path).plot_recall_curves(named), tmp_path)
    matrix = similarity.double().numpy()
    for side, scores in enumerate((matrix, matrix.T)):
        ranks = 1 + (scores > scores.diagonal()[:, None]).sum(axis=1)
        expected = [(ranks <= k).mean() for k in range(1, min(n, 100) + 1)]
        np.testing.assert_allclose(seen["curves"][long_label(1)][side], expected)
        np.testing.assert_allclose(seen["chance"][side], np.arange(1, min(n, 100) + 1) / n)
        assert seen["curves"]["before"][side][:-1].sum() == 0  # everything tied: ranked last


def test_recall_curves_of_many_models_and_a_wide_matrix(tmp_path: Path, drawn: list[Figure]) -> None:
    named = {f"model {index}": torch.randn(6, 40) for index in range(11)}
    groups = {"image_groups": list(range(6)), "text_groups": [row % 6 for row in range(40)]}
    check_png(AlignmentVisualizer(tmp_path).plot_recall_curves(named, **groups), tmp_path)
    lines = drawn[0].axes[0].get_lines()
    assert len(lines) == 12
    assert len({(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines}) == 12
    assert [len(axis.get_lines()[0].get_xdata()) for axis in drawn[0].axes] == [40, 6]


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 2), (30, 30), (5, 60), (2000, 2000)])
def test_map_states_the_gap(n: int, m: int, tmp_path: Path, drawn: list[Figure]) -> None:
    images, texts = unit(n) + 0.5, unit(m, seed=1)
    labels = [long_label(row % 9) for row in range(n)]
    check_png(AlignmentVisualizer(tmp_path).plot_embedding_map(images, texts, labels), tmp_path)
    text = message(drawn[0])
    assert f"modality gap {modality_gap(images, texts):.3f}" in text
    assert ("1,000 of 2,000 images" in text) == (n == 2000)
    assert ("3 other labels" in text) == (n > 5)


def test_map_of_a_collapsed_model_and_by_tsne(tmp_path: Path, drawn: list[Figure]) -> None:
    visualizer = AlignmentVisualizer(tmp_path)
    check_png(visualizer.plot_embedding_map(torch.ones(4, 3), torch.ones(5, 3)), tmp_path)
    first = visualizer.plot_embedding_map(unit(12), unit(10, seed=1), method="tsne").read_bytes()
    assert visualizer.plot_embedding_map(unit(12), unit(10, seed=1), method="tsne").read_bytes() == first
    assert "t-SNE" in message(drawn[1])
    with pytest.raises(ConfigurationError, match="Invalid method 'umap'"):
        visualizer.plot_embedding_map(unit(12), unit(10), method="umap")
    with pytest.raises(ShapeError, match="t-SNE needs at least 4"):
        visualizer.plot_embedding_map(unit(1), unit(2), method="tsne")


def images(folder: Path) -> list[Path | Image.Image]:
    """Wide, tall, grey of 16 bit, transparent, palette: every kind that a sheet must show."""
    deep = Image.fromarray(np.linspace(0, 65535, 200).reshape(10, 20).astype(np.uint16))
    deep.save(folder / "deep.png")
    Image.new("RGB", (300, 20), "red").save(folder / "wide.jpg")
    return [
        folder / "deep.png",
        folder / "wide.jpg",
        Image.new("RGBA", (5, 90), (0, 0, 255, 0)),
        Image.new("P", (9, 9)),
        Image.new("1", (9, 9)),
        Image.new("F", (9, 9), math.nan),
    ]


def test_sheet_of_images_marks_hits_by_sign_and_frame(tmp_path: Path, drawn: list[Figure]) -> None:
    items = images(tmp_path)
    hits = [RetrievalHit(index, item, 0.5 - index / 10) for index, item in enumerate(items)]
    out = tmp_path / "plots"
    path = AlignmentVisualizer(out).plot_retrieval_results(long_label(0), hits, relevant={1, 4})
    check_png(path, out)
    assert [text.count("✓") for text in message(drawn[0]).split("\n") if "0." in text][:6] == [0, 1, 0, 0, 1, 0]
    assert message(drawn[0]).count("✗") == 4 + 1  # and once in the key
    frames = [patch for patch in drawn[0].axes[0].patches if patch.get_linewidth() == 2.0]
    assert [frame.get_linestyle() for frame in frames] == ["--", "-", "--", "--", "-", "--"]
    assert len({frame.get_edgecolor() for frame in frames}) == 2
    assert len(drawn[0].axes[0].images) == 6


def test_sheet_of_texts_for_many_images(tmp_path: Path, drawn: list[Figure]) -> None:
    query = Image.new("RGB", (40, 30), "green")
    hits = [RetrievalHit(index, long_label(index), 0.1) for index in range(2000)]
    visualizer = AlignmentVisualizer(tmp_path)
    check_png(visualizer.plot_retrieval_results([query] * 2000, [hits] * 2000), tmp_path)
    assert "6 of 2,000 queries, best 10 of 2,000 answers" in message(drawn[0])
    assert "✓" not in message(drawn[0])
    check_png(visualizer.plot_retrieval_results([query, query], [hits[:2], []], relevant=[[0], []]), tmp_path)


def test_real_images(shared_data: Path, tmp_path: Path) -> None:
    found = sorted((shared_data / "fixture_tiny" / "images").iterdir())[:6]
    hits = [RetrievalHit(index, path, 0.3) for index, path in enumerate(found)]
    check_png(AlignmentVisualizer(tmp_path).plot_retrieval_results("a dress", hits, relevant=[0]), tmp_path)


def test_a_sheet_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    visualizer, query = AlignmentVisualizer(tmp_path), Image.new("RGB", (4, 4))
    text, gone = RetrievalHit(0, "a text", 0.1), RetrievalHit(0, tmp_path / "gone.png", 0.1)
    for arguments, message in (
        (("a text", [text]), "string is taken for a text"),
        ((query, [gone]), "string is taken for a text"),
        ((["a text", query], [[gone], [text]]), "string is taken for a text"),
        (([], []), "nothing to show"),
        ((query, []), "nothing to show"),
    ):
        with pytest.raises(DataError, match=message):
            visualizer.plot_retrieval_results(*arguments)
    with pytest.raises(ShapeError, match="results has 1 entries for 2 queries"):
        visualizer.plot_retrieval_results([query, query], [[text]])
    with pytest.raises(ShapeError, match="relevant has 2 entries for 1 queries"):
        visualizer.plot_retrieval_results([query], [[text]], relevant=[[0], [1]])
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        visualizer.plot_retrieval_results("a text", [gone])
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    visualizer = AlignmentVisualizer(tmp_path / "never made")
    square = torch.eye(3)
    for call, message in (
        (lambda: visualizer.plot_similarity_matrix(square, ["a"] * 5), "image_labels has 5 entries for 3"),
        (lambda: visualizer.plot_similarity_matrix(square, None, ["a"] * 4), "text_labels has 4 entries for 3"),
        (lambda: visualizer.plot_similarity_matrix(square, targets=square), "boolean matrix"),
        (lambda: visualizer.plot_similarity_matrix(square[0]), "Expected a 2D similarity matrix"),
        (lambda: visualizer.plot_similarity_matrix(square / 0), "similarity of image 0 and text 0 is inf"),
        (lambda: visualizer.plot_alignment_distribution(square[:2]), "Expected a square"),
        (lambda: visualizer.plot_alignment_distribution(square[:1, :1]), "1 hits and 0 misses"),
        (lambda: visualizer.plot_recall_curves(square * math.nan), "NaN"),
        (lambda: visualizer.plot_recall_curves({"a": square, "b": torch.eye(2)}), "different shapes"),
        (lambda: visualizer.plot_embedding_map(square, square, ["a"]), "labels has 1 entries for 3"),
    ):
        with pytest.raises(ShapeError, match=message):
            call()
    with pytest.raises(DataError, match="no curve"):
        visualizer.plot_recall_curves({})
    with pytest.raises(ConfigurationError, match="max_k must be at least 1"):
        visualizer.plot_recall_curves(square, max_k=0)
    with pytest.raises(ConfigurationError, match=r"end.*\.png"):
        visualizer.plot_similarity_matrix(square, filename="plot.pdf")
    assert not visualizer.output_dir.exists()


def test_short_labels_keep_both_ends() -> None:
    label = long_label(1234)
    short = short_label(label, 40)
    assert len(short) <= 40 and short.startswith("Röntgenbild") and short.endswith("Nr. 1234")
    assert max(map(len, short_label(label, 84, 21).split("\n"))) <= 21
    assert short_label("a\tb\n\x00c", 10) == "a b c"
    assert short_label(7, 10) == "7"
    assert len(short_label("肺" * 80, 40)) <= 20


def test_the_package_does_not_import_matplotlib() -> None:
    program = "import sys, domainclip.alignment; print([m for m in ('matplotlib', 'sklearn') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
