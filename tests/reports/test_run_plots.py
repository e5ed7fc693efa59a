"""The plots of a run's course: every curve can be told apart and is named, and the step that was kept is marked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from domainclip.metrics.metric import METRICS
from domainclip.reports.plots import style as plot_style
from domainclip.reports.plots.run import plot_confusion, plot_loss, plot_metrics
from domainclip.reports.plots.style import curve_style


def labels(figure: Figure, axis: int = 0) -> list[str]:
    legend = figure.axes[axis].get_legend()
    assert legend is not None
    return [text.get_text().replace("\n", " ") for text in legend.get_texts()]


def test_no_two_of_many_curves_look_alike() -> None:
    looks = [tuple(str(curve_style(index)[key]) for key in ("color", "marker", "linestyle")) for index in range(21)]
    assert len(set(looks)) == 21
    for key in ("color", "marker"):  # colours alone are not for everybody
        assert len({str(curve_style(index)[key]) for index in range(7)}) == 7


def test_metrics_are_named_also_where_their_curves_are_equal(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [
        {"step": s, "val_acc1": s / 20, "val_macro_f1": s / 20, "val_i2t_R@1": 0.5, "val_t2i_R@1": math.nan}
        for s in (0, 10, 20)
    ]
    assert plot_metrics(rows, tmp_path / "metrics.png", 10)
    accuracy, f1, recall = (METRICS[name].title for name in ("acc1", "macro_f1", "i2t_R@1"))
    assert labels(drawn[0]) == [f"{accuracy} = {f1} (100.0%)", f"{recall} (50.0%)", "kept: step 10"]
    first, second, kept = drawn[0].axes[0].get_lines()
    for one, other in ((first.get_color(), second.get_color()), (first.get_linestyle(), second.get_linestyle())):
        assert one != other
    assert list(kept.get_xdata()) == [10, 10]


def test_the_loss_has_its_validation_curve_and_the_step_that_was_kept(tmp_path: Path, drawn: list[Figure]) -> None:
    rows = [{"step": step, "loss": 1 / step, "learning_rate": 1e-3} for step in range(1, 9)]
    rows += [{"step": step, "val_loss": 2.0} for step in (0, 4, 8)]
    assert plot_loss(rows, tmp_path / "loss.png", 4)
    assert labels(drawn[0]) == ["training (0.125)", "validation (2)", "kept: step 4"]
    _, validation, kept = drawn[0].axes[0].get_lines()
    assert list(validation.get_xdata()) == [0, 4, 8] and list(kept.get_xdata()) == [4, 4]


def test_a_single_step_has_whole_steps_on_its_axis(tmp_path: Path, drawn: list[Figure]) -> None:
    assert plot_loss([{"step": 4, "loss": 1.0}], tmp_path / "loss.png")
    low, high = drawn[0].axes[0].get_xlim()
    shown = [tick for tick in drawn[0].axes[0].get_xticks() if low <= tick <= high]
    assert shown and all(tick == round(tick) for tick in shown) and 4 in shown


def test_letters_that_no_font_has_are_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot_style, "font_families", lambda: ["DejaVu Sans"])
    plot_confusion([[1, 0], [0, 1]], ["赤い円盤", "青い円盤"], tmp_path / "c.png")
    assert [record.message for record in caplog.records] == [
        "c.png shows boxes in place of letters that no installed font has: install one that has them, such as Noto "
        "Sans CJK"
    ]
    assert not [each for each in recwarn if "Glyph" in str(each.message)]
