"""The alignment report of a training run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from align_cases import RANKING, make_tiny_engine
from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.pipelines.run_alignment import RunAlignment, alignment_folder
from domainclip.pipelines.run_folder import RunFolder
from domainclip.reports.alignment_report import prepare_folder
from domainclip.resolve import resolve_for_inference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tiny_engine():
    return make_tiny_engine()


def draw_nothing(monkeypatch) -> None:
    """Drawing is most of a report's time, and tested where a test looks at it."""
    monkeypatch.setattr("domainclip.reports.alignment_report.draw", lambda *_: [])


def train(domainclip, tiny_data, output: Path, *more: object):
    return domainclip(
        "train", "-r", "debug", "-d", tiny_data.folder, "-o", output, "alignment_visualization=true", *more
    )


def test_a_run_writes_its_alignment_report(domainclip, tiny_data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    result = train(domainclip, tiny_data, run, "save_steps=1", "eval_steps=1")
    assert result.exit_code == 0, result.err
    content = json.loads((run / "alignment" / "alignment.json").read_text())
    report = json.loads((run / "report.json").read_text())
    assert content["names"] == {"model": "after", "compared": "before"}
    for role, when in (("model", "after"), ("compared", "before")):
        for key in RANKING:
            assert content["metrics"][role][key] == report[when][key]
    for name in content["plots"]:
        assert (run / "alignment" / name).is_file()
    assert "(alignment/report.md)" in (run / "report.md").read_text()
    assert content["changes"]["i2t_R@1"]["change"] == report["comparison"]["i2t_R@1"]["change"]

    draw_nothing(monkeypatch)
    # Killed after the last checkpoint and resumed: the embeddings of before are read, not made again.
    shutil.rmtree(run / "alignment")
    kept = RunFolder(run).alignment_before.read_bytes()
    stamp = RunFolder(run).alignment_before.stat().st_mtime_ns
    result = domainclip("train", "-o", run, "--resume")
    assert result.exit_code == 0, result.err
    assert RunFolder(run).alignment_before.read_bytes() == kept
    assert RunFolder(run).alignment_before.stat().st_mtime_ns == stamp
    again = json.loads((run / "alignment" / "alignment.json").read_text())
    assert again["metrics"] == content["metrics"]

    # Started anew without it: what is left of the earlier run would be read as this one's.
    result = domainclip("train", "-r", "debug", "-d", tiny_data.folder, "-o", run, "--overwrite", "max_steps=1")
    assert result.exit_code == 0, result.err
    assert not (run / "alignment").exists()
    assert not RunFolder(run).alignment_before.exists()


def test_a_folder_of_the_users_choice(domainclip, tiny_data, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    run = tmp_path / "run"
    refused = train(domainclip, tiny_data, run, f"visualization_output_dir={run}")
    assert refused.exit_code == 2
    assert "is the run's own folder" in refused.err
    result = train(domainclip, tiny_data, run, "max_steps=1", f"visualization_output_dir={tmp_path / 'shown'}")
    assert result.exit_code == 0, result.err
    assert (tmp_path / "shown" / "alignment.json").is_file()
    assert not (run / "alignment").exists()
    assert str(tmp_path / "shown" / "report.md") in (run / "report.md").read_text()
    assert alignment_folder(CLIPFinetuningConfig(output_dir="x")) == Path("x/alignment")


def test_embeddings_of_other_rows_are_not_taken_for_these(tiny_data, tiny_engine, tmp_path, monkeypatch):
    draw_nothing(monkeypatch)
    run = resolve_for_inference(CLIPFinetuningConfig(output_dir=str(tmp_path), model_name="tiny"))
    RunAlignment(run, tiny_data.pairs("val"), "val", tmp_path).remember_before(tiny_engine, False)
    other = RunAlignment(run, tiny_data.pairs("test"), "test", tmp_path)
    other.remember_before(tiny_engine, True)
    report = other.write(tiny_engine, [], 5)
    assert report.difference["alignment_margin"] == 0  # the same model before and after, on the rows of the test


def test_folder_of_another_report_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match=r"pairs\.csv is not of an alignment report"):
        prepare_folder(tmp_path)
