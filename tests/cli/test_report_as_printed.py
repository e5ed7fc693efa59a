"""What ``report.md`` tells people to type works as it stands, also where a folder has blanks and quotes in its name."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from domainclip.events import Event, PhaseFinished, PhaseProgress, PhaseStarted
from domainclip.reports.schema import EvaluationFile, ResolutionsReport
from domainclip.words import counted
from forked import run_python

pytestmark = pytest.mark.slow

KEYS = ["batch_size=6", "max_steps=2", "num_workers=0", "mixed_precision=false", "device=cpu", "probe_first=false"]


@pytest.fixture
def run(domainclip, tiny_data, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    folder = tmp_path / 'it\'s a  "run" `of` mine'
    done = domainclip("train", "--model", "tiny", "--data", tiny_data.folder, "--output", folder, *KEYS)
    assert done.exit_code == 0, done.err
    return folder


def test_the_lines_of_python_and_the_next_command_run(run: Path, domainclip, tiny_data, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    page = (run / "report.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```\n", page, re.S)
    image = run.parent / "image.jpg"
    image.write_bytes(next(path for path in tiny_data.folder.rglob("*.jpg")).read_bytes())
    monkeypatch.chdir(run.parent)
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "grass" in done.stdout
    (command,) = re.findall(r"^- (`+) ?(domainclip evaluate.*?) ?\1$", page, re.M)
    words = shlex.split(command[1].replace("YOUR_DATA", shlex.quote(str(tiny_data.folder))))
    found = domainclip(*words[1:], "device=cpu", "--json")
    assert found.exit_code == 0, found.err
    assert json.loads(found.out)["model"] == str(run / "model")


@pytest.mark.parametrize(
    ("n", "noun", "shown"),
    [(1, "image", "1 image"), (0, "row", "0 rows"), (1200, "class", "1,200 classes"), (1, "class", "1 class")],
)
def test_one_thing_is_not_said_in_the_plural(n: int, noun: str, shown: str) -> None:
    assert counted(n, noun) == shown


@pytest.mark.parametrize("extra", [[], ["--json"], ["--output", "f.json"], ["--json", "--output", "f.json"]])
@pytest.mark.parametrize("resolutions", [[], ["--resolutions", "32", "--no-robustness"]])
def test_every_way_to_ask_for_an_evaluation_counts_what_was_skipped(  # type: ignore[no-untyped-def]
    extra: list[str], resolutions: list[str], domainclip, tiny_data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_data.folder, "data")
    broken = sorted(Path("data/images").glob("*"))
    for path in broken[:2]:
        path.write_bytes(b"no image")
    given = ["evaluate", "-m", "tiny", "-d", "data", "--split", "all", "device=cpu", *resolutions, *extra]
    found = domainclip(*given)
    assert found.exit_code == 0, found.err
    contents = [json.loads(found.out)] if "--json" in extra else []
    contents += [json.loads(Path("f.json").read_text(encoding="utf-8"))] if "--output" in extra else []
    schema = ResolutionsReport if resolutions else EvaluationFile
    for content in contents:
        assert schema.model_validate(content).to_dict() == content
        (count,) = content["skipped_counts"]
        assert (count["kind"], count["rows"], count["images"]) == ("unreadable image", 2, 2)
    if "--json" not in extra:
        assert "Skipped (all): 2 rows, unreadable image; first: " in " ".join(found.out.split())
    if len(contents) == 2:
        first, second = ({key: each.get(key) for key in ("skipped", "notes", "n_rows")} for each in contents)
        assert first == second


def test_the_evaluations_around_a_training_are_phases_with_progress(tiny_data, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    from domainclip import CLIPFinetuningConfig, run_training

    events: list[Event] = []
    values = {key: value for key, _, value in (word.partition("=") for word in KEYS)}
    config = CLIPFinetuningConfig(
        model_name="tiny",
        data_path=str(tiny_data.folder),
        output_dir=str(tmp_path / "run"),
        batch_size=int(values["batch_size"]),
        max_steps=2,
        num_workers=0,
        mixed_precision=False,
        device="cpu",
        probe_first=False,
    )
    run_training(config, listeners=[events.append])
    for name in ("evaluation_before", "evaluation_after"):
        own = [event for event in events if getattr(event, "name", None) == name]
        started, *between, finished = own
        assert isinstance(started, PhaseStarted) and isinstance(finished, PhaseFinished)
        assert between and all(isinstance(event, PhaseProgress) for event in between)
        assert isinstance(between[-1], PhaseProgress) and between[-1].done == between[-1].total == started.total == 6
    names = [event.name for event in events if isinstance(event, PhaseStarted)]
    course = ["evaluation_before", "training", "evaluation_after", "calibration", "report"]
    assert [name for name in names if name in course] == course
