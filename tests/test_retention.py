"""Retention sets: whose rows are drawn, what is never looked at, and the figures against plain counting."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from conftest import TinyData
from domainclip.config import CLIPFinetuningConfig
from domainclip.config.slices import DEFAULT_TEMPLATES
from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError
from domainclip.evaluation.report_markdown import report_markdown
from domainclip.finetune import CLIPFinetuningController
from domainclip.finetune.retention import Retention, load_retention, record_course, stratified_rows
from domainclip.training.metrics_log import read_metrics


def controller_of(*data: Path | str, **values: object) -> CLIPFinetuningController:
    config = CLIPFinetuningConfig(
        model_name="tiny", image_resolution=32, mixed_precision=False, retention_data=[str(path) for path in data],
        **values,
    )  # fmt: skip
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    return controller


def loaded(*data: Path | str, **values: object) -> Retention:
    found = load_retention(controller_of(*data, **values))
    assert found is not None
    return found


def rows_of(counts: dict[str, int]) -> list[ImageTextPair]:
    return [
        ImageTextPair(Path(f"{label}_{number}.jpg"), f"caption {number}", label)
        for label, count in counts.items()
        for number in range(count)
    ]


def test_a_draw_has_each_labels_share() -> None:
    rows = rows_of({"often": 600, "sometimes": 300, "rarely": 90, "hardly": 10})
    drawn = stratified_rows(rows, 100, seed=1)
    assert Counter(pair.label for pair in drawn) == {"often": 60, "sometimes": 30, "rarely": 9, "hardly": 1}
    assert drawn == stratified_rows(rows, 100, seed=1)
    assert drawn != stratified_rows(rows, 100, seed=2)
    # Neither where the pictures lie nor the order they come in has a say.
    moved = [ImageTextPair(Path("/elsewhere") / p.image_path, p.caption, p.label) for p in reversed(rows)]
    assert {p.image_path.name for p in stratified_rows(moved, 100, seed=1)} == {p.image_path.name for p in drawn}
    assert stratified_rows(rows[:5], 100, seed=1) == rows[:5]


def test_nothing_of_the_test_split_is_chosen_on(tiny_data: TinyData) -> None:
    retention = loaded(tiny_data.folder, retention_rows=9)
    (found,) = retention.sets
    tests = {pair.image_path for pair in tiny_data.pairs("test")}
    others = {pair.image_path for split in ("train", "val") for pair in tiny_data.pairs(split)}
    assert found.validation.zero_shot is not None and found.test.zero_shot is not None
    chosen = set(found.validation.zero_shot.paths)
    assert len(chosen) == found.validation.n_rows == retention.rows == 9
    spare = {pair.image_path for pair in found.spare}
    assert chosen | spare == others and not chosen & spare
    assert set(found.test.zero_shot.paths) == tests and not tests & (chosen | spare)
    assert found.test_split == "test" and found.metric == "acc1"
    assert Counter(found.validation.zero_shot.targets) == {0: 3, 1: 3, 2: 3}
    assert "9 rows for validation, 6 of the test split" in retention.notes[0]


def test_scores_are_those_of_a_plain_count(tiny_data: TinyData) -> None:
    controller = controller_of(tiny_data.folder, retention_rows=12, prompt_templates=["only in this domain: {}"])
    retention = load_retention(controller)
    assert retention is not None
    engine = controller.engine()
    rows = stratified_rows([*tiny_data.pairs("train"), *tiny_data.pairs("val")], 12, controller.config.seed)
    labels = sorted({pair.label for pair in rows})
    vectors = [
        torch.nn.functional.normalize(engine.encode_texts([t.format(label) for t in DEFAULT_TEMPLATES]).mean(0), dim=0)
        for label in labels
    ]
    right = 0
    for pair in rows:
        picture = engine.encode_images([pair.image_path])[0]
        right += labels[max(range(3), key=lambda k: float(picture @ vectors[k]))] == pair.label
    name = tiny_data.folder.name
    assert retention.on_validation() == {name: pytest.approx(right / 12)}
    during = retention.during()
    assert during["retention_mean"] == during[f"retention_{name}"] == pytest.approx(right / 12)


def test_what_a_domain_does_to_its_pictures_is_not_done_to_these(tiny_data: TinyData) -> None:
    controller = controller_of(tiny_data.folder, image_preprocessing={"illumination": "grey_world"})
    retention = load_retention(controller)
    assert retention is not None
    path = tiny_data.pairs("test")[0].image_path
    plain = controller_of(tiny_data.folder).engine().pixels([path])
    assert torch.equal(retention.engine.pixels([path]), plain)
    assert not torch.equal(controller.engine().pixels([path]), plain)


def test_sets_without_labels_or_without_a_test_split(tiny_data: TinyData, tmp_path: Path) -> None:
    with open(tmp_path / "pictures.csv", "w", encoding="utf-8", newline="") as handle:
        rows = [(pair.image_path, f"{pair.caption} {n}") for n, pair in enumerate(tiny_data.pairs())]
        csv.writer(handle).writerows([("image_path", "caption"), *rows])
    retention = loaded(tmp_path / "pictures.csv", tiny_data.folder, train_split=0.8, val_split=0.2, test_split=0.0)
    without, labelled = retention.sets
    assert (without.name, without.metric, without.test_split) == ("pictures", "mean_R@1", "validation")
    assert (labelled.metric, labelled.test_split) == ("acc1", "test")
    scores = retention.on_validation()
    assert retention.during()["retention_mean"] == pytest.approx(sum(scores.values()) / 2)
    before = retention.on_test()
    after = {name: {key: value / 2 for key, value in part.items()} for name, part in before.items()}
    told = retention.report(before, after)
    assert told["before"] == {
        # Every set has retrieval figures, one has classes.
        "acc1": before[labelled.name]["acc1"],
        "mean_R@1": pytest.approx((before["pictures"]["mean_R@1"] + before[labelled.name]["mean_R@1"]) / 2),
    }
    page = report_markdown({"retention": told})
    assert "| pictures | mean_R@1 | validation | 18 |" in page and f"| {labelled.name} | acc1 | test | 6 |" in page


def test_names_tell_sets_apart(tiny_data: TinyData, tmp_path: Path) -> None:
    link = tmp_path / tiny_data.folder.name
    link.symlink_to(tiny_data.folder)
    names = [part.name for part in loaded(tiny_data.folder, link, tiny_data.table("train")).sets]
    base = tiny_data.folder.name
    assert names == [base, f"{base} (2)", f"{base}/train"]


def test_a_set_that_cannot_be_used_is_an_error_that_names_it(tiny_data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_retention(controller_of(tmp_path / "nowhere"))
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    (tmp_path / "bad.csv").write_text("image_path,caption,label\nx.jpg,a,b\n")
    with pytest.raises(DataError, match=r"bad\.csv has no row that can be used"):
        load_retention(controller_of(tmp_path / "bad.csv"))
    assert load_retention(CLIPFinetuningController(CLIPFinetuningConfig(), Console(quiet=True))) is None


def test_figures_before_training_are_read_again_on_resumption(tiny_data: TinyData, tmp_path: Path) -> None:
    retention = loaded(tiny_data.folder)
    kept = tmp_path / "before.json"
    first = retention.on_test(kept)
    with torch.no_grad():
        for parameter in retention.engine.encoder.parameters():
            parameter.neg_()
    assert retention.on_test(kept, known=True) == first
    assert retention.on_test() != first


def test_a_course_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    for value in (0.25, 0.5):
        record_course(tmp_path, 2, {"saved_retention_mean": value})
        record_course(tmp_path, 0, {"val_retention_mean": value})
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 0, "val_retention_mean": 0.5}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0},
        {"step": 2, "saved_retention_mean": 0.5},
    ]  # fmt: skip
