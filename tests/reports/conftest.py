"""What the tests of plots share."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from domainclip.reports.plots import style as plot_style


@pytest.fixture(scope="module", autouse=True)
def unrendered() -> None:
    """Here figures are looked at, and rendered."""


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, in order."""
    figures: list[Figure] = []
    real = plot_style.FigureCanvasAgg

    def keep(figure: Figure) -> object:
        figures.append(figure)
        return real(figure)

    monkeypatch.setattr(plot_style, "FigureCanvasAgg", keep)
    return figures
