"""What a training shows in a notebook, and docs/notebooks.md as the page shows it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from domainclip.events import (
    Event,
    InitialValidated,
    Milestone,
    PhaseFinished,
    PhaseProgress,
    PhaseStarted,
    RunEnded,
    RunFinished,
    RunStarted,
    StepLogged,
    Validated,
    Warned,
)
from domainclip.tracking import notebook
from domainclip.tracking.notebook import NotebookListener, in_notebook, notebook_display
from tiny_data import TinyData

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "notebooks.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a kernel that is none has displayed, each state after the other."""
    states: list[str] = []

    def display(content: str, display_id: bool) -> Any:
        states.append(content)
        return SimpleNamespace(update=states.append)

    package, displays = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    displays.HTML, displays.display = str, display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", displays)
    monkeypatch.setattr(notebook, "EVERY_SECONDS", 0.0)
    return states


def step(number: int, loss: float) -> StepLogged:
    return StepLogged(
        step=number,
        total_steps=50,
        epoch=number / 10,
        batch_size=8,
        resolution=32,
        metrics={"loss": loss},
        learning_rates=(1e-4,),
        gradient_norm=1.0,
        logit_scale=14.0,
        embedding_spread=0.5,
        effective_rank=3.0,
        seconds={},
        samples_per_second=123.4,
        memory_mb=100.0,
        peak_memory_mb=200.0,
    )


def validated(number: int, value: float) -> Validated:
    return Validated(
        step=number,
        metrics={"acc1": value},
        primary="acc1",
        value=value,
        greater_is_better=True,
        standard_error=0.1,
        top=value,
        kept=True,
    )


RUN: list[Event] = [
    PhaseStarted(name="evaluation_before", total=100),
    PhaseProgress(name="evaluation_before", done=40, total=100),
    PhaseFinished(name="evaluation_before", seconds=1.0),
    RunStarted(folder="outputs/mine", step=0, total_steps=50),
    InitialValidated(metrics={"acc1": 0.3}, primary="acc1", value=0.3, greater_is_better=True, standard_error=0.1),
    PhaseStarted(name="training", total=50),
    step(1, 2.0),
    PhaseProgress(name="training", done=10, total=50, loss=2.0),
    step(10, 1.5),
    PhaseStarted(name="validation"),
    validated(10, 0.5),
    PhaseFinished(name="validation", seconds=1.0),
    validated(20, 0.75),
    Milestone(
        name="plateau", step=20, level="warning", text="<b>It stands.</b>", rule="", evidence={}, advice="Stop it."
    ),
    Warned(text="an image & more"),
    PhaseFinished(name="training", seconds=10.0),
]


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.S))


def test_the_display_follows_the_run(shown: list[str]) -> None:
    listener = NotebookListener()
    for event in RUN:
        listener(event)
    texts = [words(state) for state in shown]
    assert "Preparing" in texts[0]
    assert "Evaluation before 40 of 100" in texts[2]
    during = next(text for text in texts if "Validation" in text)
    assert "Running step 10 of 50, epoch 1.00" in during and "Training 10 of 50" in during
    assert "123.4 images/s" in during and "acc1 0.3000 before training" in during
    assert "loss 1.5000, between 1.5000 and 2.0000" in during
    assert "validation acc1 0.7500, between 0.5000 and 0.7500" in texts[-1]
    assert "<b>It stands" not in shown[-1] and "⚠ &lt;b&gt;It stands.&lt;/b&gt; Stop it." in shown[-1]
    assert "an image &amp; more" in shown[-1]


def test_what_remains_is_still(shown: list[str]) -> None:
    with notebook_display() as listeners:
        (listener,) = listeners
        for event in RUN[:-1]:
            listener(event)
        totals = {"train_loss": 1.0, "final_loss": 0.9, "samples_per_second": 9.0, "rows_seen": 90}
        listener(
            RunFinished(
                steps=50,
                epochs=5.0,
                training_time=100.0,
                peak_memory_mb=200.0,
                stopped_early=True,
                best_step=20,
                best_value=0.75,
                **totals,  # type: ignore[arg-type]
            )
        )
        listener(RunEnded(outcome="finished", text="The report is here"))
    last = words(shown[-1])
    assert "Finished 50 steps, 5.00 epochs in 2 min, stopped early" in last and "✓ The report is here" in last
    assert "Training 10 of 50" not in last and "left" not in last
    with pytest.raises(KeyboardInterrupt), notebook_display() as (listener,):
        raise KeyboardInterrupt
    assert "Ended by KeyboardInterrupt" in words(shown[-1])


def test_it_is_drawn_at_most_twice_a_second(shown: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "EVERY_SECONDS", 0.5)
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    listener = NotebookListener()
    for done in range(1000):
        now[0] += 0.01
        listener(PhaseProgress(name="training", done=done, total=1000))
    assert 15 <= len(shown) <= 21


def test_the_html_is_small_and_well_formed(shown: list[str]) -> None:
    listener = NotebookListener()
    for number in range(1, 100_001, 10):
        listener._losses.add(number, 1 / number)
    listener._losses.add(100_001, float("nan"))
    listener(step(100_002, 0.25))
    assert len(shown[-1]) < 10_000
    assert listener._losses.points[-1] == (100_002, 0.25) and listener._losses.points[0][0] < 2000
    figure = re.search(r"<svg.*?</svg>", shown[-1], re.S)
    assert figure is not None
    drawn = ElementTree.fromstring(figure[0].replace("role=img", 'role="img"')).find("polyline")
    assert drawn is not None
    heights = [float(pair.split(",")[1]) for pair in drawn.attrib["points"].split()]
    assert min(heights) == 0 and max(heights) == notebook._HEIGHT


def test_elsewhere_there_is_no_display(monkeypatch: pytest.MonkeyPatch, shown: list[str]) -> None:
    with notebook_display(wanted=False) as listeners:
        assert listeners == []
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())  # a terminal's
    assert not in_notebook()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()
    with notebook_display() as listeners:
        assert listeners == [] and shown == []


@pytest.mark.slow
def test_the_page_runs_in_a_kernel(tiny_data: TinyData, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="no notebook is executed without nbclient")
    pytest.importorskip("ipykernel", reason="no notebook is executed without ipykernel")
    import nbformat

    options = 'model_name="tiny", device="cpu", num_epochs=2, batch_size=6, num_workers=0, probe_steps=20, '
    cells = [block.replace('model_name="vit-b-32", ', options) for block in BLOCKS]
    cells = [cell.replace("images.csv", str(tiny_data.folder)) for cell in cells]
    assert options in cells[0] and str(tiny_data.folder) in cells[0]
    paths = (
        f"import sys\nsys.path[:0] = {sys.path!r}\nfrom domainclip.tracking import notebook\nnotebook.EVERY_SECONDS = 0"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in [paths, *cells]])
    updates: list[str] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc, name-defined]
        def process_message(self, message: Any, cell: Any, index: int) -> Any:
            if message["msg_type"] == "update_display_data":
                updates.append(words(message["content"]["data"]["text/html"]))
            return super().process_message(message, cell, index)

    Client(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.write(book, tmp_path / "notebook.ipynb")
    _, run, value, lines, with_console = book.cells
    display = next(out for out in run.outputs if "domainclip-run" in out.get("data", {}).get("text/html", ""))
    assert "Finished" in words(display["data"]["text/html"])  # what is saved is the last state
    assert any("Running" in text and "Training" in text for text in updates)
    assert any("Evaluation before" in text for text in updates)
    said = "".join(out.get("text", "") for out in run.outputs)
    assert "Before and after, test split" in said and "s left)" not in said and "\x1b" not in said
    assert len([out for out in run.outputs if out["output_type"] == "display_data"]) == 1
    (html,) = [out["data"]["text/html"] for out in value.outputs]
    assert "domainclip-outcome" in html and "data:image/png;base64," in html and "<table>" in html
    printed = "".join(out.get("text", "") for out in lines.outputs)
    assert printed.startswith("RunOutcome(") and len(printed.splitlines()[0]) < 200
    assert not [out for out in with_console.outputs if "domainclip-run" in out.get("data", {}).get("text/html", "")]
