"""Findings about labels, groups and splits of tables."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from domainclip.data.checks.check import check_data
from domainclip.data.labels import doubtful_sentences, unify_labels
from domainclip.data.records import ImageTextPair


def table(folder: Path, header: str, cells: list[str]) -> Path:
    for i in range(len(cells)):
        Image.effect_noise((32, 32), 90 + i).convert("RGB").save(folder / f"{i}.png")
    lines = "".join(f"{i}.png,caption {i},{cell}\n" for i, cell in enumerate(cells))
    (folder / "t.csv").write_text(f"image_path,caption,{header}\n{lines}")
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["0", "1", "2"], "numbers"),
        (["0.0", "1.0", "2.0"], "numbers"),
        (["True", "False"], "true and false"),
        (["001.Red_Disc", "002.Green_Bar"], "code"),
        (["green-bar", "green bar"], "alike"),
    ],
)
def test_names_that_say_nothing(tmp_path: Path, labels: list[str], words: str) -> None:
    (finding,) = check_data(table(tmp_path, "label", labels * 3)).named("label-names")
    assert finding.severity == "warning" and words in finding.detail and finding.count == len(labels)
    assert len(doubtful_sentences(labels)) == 1


def test_names_that_say_something(tmp_path: Path) -> None:
    report = check_data(table(tmp_path, "label", ["red disc", "green bar", "stage 2", "p53"] * 2))
    assert report.named("label-names") == [] and doubtful_sentences(["red disc", "stage 2", "p53", "3D print"]) == []


def test_spellings_of_one_class_are_one(tmp_path: Path) -> None:
    report = check_data(table(tmp_path, "label", ["red disc", "red_disc", "Red  Disc", "red disc", "bar", "bar"]))
    (finding,) = report.named("label-spellings")
    assert "'red disc' = 'Red  Disc' = 'red_disc'" in finding.detail
    pairs = [ImageTextPair("a.png", "x", "red_disc"), ImageTextPair("b.png", "y", "red_disc")]
    other = [ImageTextPair("c.png", "z", "Red Disc")]
    assert len(unify_labels([pairs, other])) == 1 and other[0].label == "red_disc"


def test_a_group_column_is_proposed(tmp_path: Path) -> None:
    path = table(tmp_path, "patient_id", ["P1", "P1", "P2", "P2"])
    (finding,) = check_data(path).named("group-column")
    assert "group_col=patient_id" in finding.advice
    assert check_data(path, group_col="patient_id").named("group-column") == []


def test_groups_over_splits_of_a_column(tmp_path: Path) -> None:
    path = table(tmp_path, "group,split", ["2.0,train", "3.0,train", "2,test", "4,test"])
    report = check_data(path)
    assert report.rows == {"train": 2, "test": 2}
    (finding,) = report.named("shared-groups")
    assert (finding.count, finding.examples) == (1, ["2"])


def test_sentences_wrap_and_file_names_do_not(tmp_path: Path) -> None:
    name = f"an image with a name that is longer than a line is wide {'x' * 60}.png"
    (tmp_path / "t.csv").write_text(
        "filename;title;patient_id\n" + "".join(f"{n}.png;caption {n};p{n % 3}\n" for n in range(8)) + f"{name};c;p1\n"
    )
    for n in range(8):
        Image.new("RGB", (32, 32), (n * 20, 0, 9)).save(tmp_path / f"{n}.png")
    shown = check_data(tmp_path / "t.csv").render(80).plain.splitlines()
    assert any(name in line for line in shown)
    assert max(len(line) for line in shown if name not in line and str(tmp_path) not in line) <= 80
    assert any("patient_id" in line for line in shown)
