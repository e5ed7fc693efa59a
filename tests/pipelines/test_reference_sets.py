"""Reference sets: whose rows are drawn, what is never looked at, and the figures against plain counting."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.settings import DEFAULT_TEMPLATES
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError
from domainclip.pipelines import CLIPFinetuningController
from domainclip.pipelines.reference_sets import (
    ReferenceSets,
    load_reference_sets,
    stratified_rows,
    validation_and_spare,
)
from report_cases import pages, write_run
from tiny_data import TinyData

pytestmark = pytest.mark.slow


def controller_of(*data: Path | str, **values: object) -> CLIPFinetuningController:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        image_resolution=32,
        mixed_precision=False,
        **{"retention_data": [str(path) for path in data], **values},
    )
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    return controller


def loaded(*data: Path | str, **values: object) -> ReferenceSets:
    found = load_reference_sets(controller_of(*data, **values).session)
    assert found is not None
    return found


def rows_of(counts: dict[str, int]) -> list[ImageTextPair]:
    return [
        ImageTextPair(Path(f"{label}_{index}.jpg"), f"caption {index}", label)
        for label, count in counts.items()
        for index in range(count)
    ]


def test_a_draw_has_each_labels_fraction() -> None:
    rows = rows_of({"often": 600, "sometimes": 300, "rarely": 90, "hardly": 10})
    drawn = stratified_rows(rows, 100, seed=1)
    assert Counter(pair.label for pair in drawn) == {"often": 60, "sometimes": 30, "rarely": 9, "hardly": 1}
    assert drawn == stratified_rows(rows, 100, seed=1)
    assert drawn != stratified_rows(rows, 100, seed=2)
    # Neither where the images lie nor the order they come in has a say.
    moved = [ImageTextPair(Path("/elsewhere") / p.image_path, p.caption, p.label) for p in reversed(rows)]
    assert {p.image_path.name for p in stratified_rows(moved, 100, seed=1)} == {p.image_path.name for p in drawn}
    assert stratified_rows(rows[:5], 100, seed=1) == rows[:5]


def grouped(groups: int, rows: int, captions: int = 1) -> list[ImageTextPair]:
    return [
        ImageTextPair(Path(f"{number}.jpg"), f"caption {caption} of {number}", "ab"[group % 2], f"patient {group}")
        for group in range(groups)
        for number in range(group * rows, (group + 1) * rows)
        for caption in range(captions)
    ]


@pytest.mark.parametrize(
    ("pool", "most", "n_validation", "n_spare"),
    [
        (rows_of({"a": 30, "b": 10}), 300, 20, 20),  # half of them at most
        (rows_of({"a": 30, "b": 10}), 8, 8, 32),
        ([p for pair in rows_of({"a": 20}) for p in (pair, ImageTextPair(pair[0], "again", "a"))], 10, 10, 30),
        (grouped(6, 5), 12, 10, 20),
        (grouped(2, 20, captions=2), 10, 10, 40),  # no group is that small: of one of them, and none of its others
        (grouped(1, 20), 10, 10, 0),
        (rows_of({"a": 2}), 300, 2, 0),
        ([], 10, 0, 0),
    ],
)
def test_no_image_and_no_group_is_on_both_sides(
    pool: list[ImageTextPair], most: int, n_validation: int, n_spare: int
) -> None:
    validation_rows, spare = validation_and_spare(pool, [], most, seed=3)
    assert (len(validation_rows), len(spare)) == (n_validation, n_spare)
    assert {pair.image_path for pair in validation_rows}.isdisjoint(pair.image_path for pair in spare)
    assert ({pair.group for pair in validation_rows} & {pair.group for pair in spare}) <= {None}
    assert (validation_rows, spare) == validation_and_spare(pool, [], most, seed=3)
    if spare:  # nor is anything that the test split shows too
        spoilt = [ImageTextPair(spare[0].image_path, "elsewhere", group="another")]
        left = validation_and_spare(pool, spoilt, most, seed=3)[1]
        assert spare[0] not in left and len(left) < len(spare)


def write_table(folder: Path, name: str, rows: list[ImageTextPair], columns: str, **more: str) -> None:
    folder.mkdir(exist_ok=True)
    with open(folder / name, "w", encoding="utf-8", newline="") as handle:
        names = [*columns.split(","), *more]
        lines = [[pair.image_path, pair.caption, pair.label][: len(columns.split(","))] for pair in rows]
        csv.writer(handle).writerows([names, *([*line, *more.values()] for line in lines)])


def test_where_nothing_is_left_nothing_is_said_to_be_rehearsed(tiny_data: TinyData, tmp_path: Path) -> None:
    write_table(tmp_path / "one", "train.csv", tiny_data.pairs(), "image_path,caption,label", group="same")
    write_table(tmp_path / "one", "test.csv", tiny_data.pairs("test"), "image_path,caption,label")
    for folder, rehearsed in ((tiny_data.folder, 12), (tmp_path / "one", 0)):
        controller = controller_of(folder, batch_size=6)
        recipe = controller.prepare(tiny_data.pairs())
        reference_sets = load_reference_sets(controller.session)
        assert reference_sets is not None and controller.model is not None
        assert (
            len(reference_sets.sets[0].rehearsed) == rehearsed
            and f"{rehearsed} are rehearsed" in reference_sets.notes[0]
        )
        found = reference_sets.rehearsed(controller.model, recipe, recipe, contextlib.nullcontext)
        assert (found is not None) == bool(rehearsed)
        (decision,) = [
            each for each in reference_sets.explained(controller.run).decisions if each.key == "rehearsal_strength"
        ]
        assert ("no effect" in decision.reason) == (not rehearsed)
        assert [text[:20] for text in reference_sets.warnings] == ([] if rehearsed else ["Nothing is rehearsed"])


def test_what_cannot_be_read_is_told(tiny_data: TinyData, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    shutil.copytree(tiny_data.folder, folder)
    chosen = loaded(folder, retention_rows=6, rehearsal_strength=1.0).sets[0]
    assert chosen.validation.zero_shot is not None and chosen.test.zero_shot is not None
    spoilt = {chosen.validation.zero_shot.paths[0], chosen.test.zero_shot.paths[0], chosen.rehearsed[0].image_path}
    for path in spoilt:
        path.write_bytes(b"no image")
    with open(folder / "train.csv", "a", encoding="utf-8") as handle:
        handle.write("images/nowhere.png,a,b\n")
    found = loaded(folder, retention_rows=6, rehearsal_strength=1.0)
    reported = {row["image_path"]: row for row in found.skipped}
    assert reported.keys() == {str(path) for path in spoilt} | {"images/nowhere.png"}
    assert {row["split"] for row in found.skipped} == {"reference set bad"}
    assert "4 skipped, first: train.csv row 20" in found.notes[0]
    assert len(found.sets[0].rehearsed) == 17 and found.sets[0].validation.n_rows == found.sets[0].test.n_rows == 5
    with pytest.raises(DataError, match="nowhere"):
        loaded(folder, strict=True)
    (folder / "train.csv").write_text("".join((folder / "train.csv").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="reference set bad: "):
        loaded(folder, retention_rows=6, strict=True)


def test_columns_have_the_recipes_names_or_the_usual_ones(tiny_data: TinyData, tmp_path: Path) -> None:
    names = {"image_col": "file", "caption_col": "text", "label_col": "klass", "group_col": "patient"}
    usual = loaded(tiny_data.folder, **names)
    assert usual.sets[0].metric == "acc1" and usual.sets[0].validation.n_rows == 12
    write_table(tmp_path / "own", "train.csv", tiny_data.pairs(), "file,text,klass")
    assert loaded(tmp_path / "own", **names).sets[0].metric == "acc1"
    (tmp_path / "mixed").mkdir()
    rows = [{"image": str(pair.image_path), "text": pair.caption, "label": pair.label} for pair in tiny_data.pairs()]
    (tmp_path / "mixed" / "rows.json").write_text(json.dumps(rows))
    write_table(tmp_path / "mixed", "meta.csv", tiny_data.pairs(), "image_path", patient="one")
    mixed = loaded(tmp_path / "mixed", **names, test_split=0.0, val_split=0.2).sets[0]
    assert mixed.metric == "acc1" and mixed.spare == [], "all of one patient"
    write_table(tmp_path / "without", "train.csv", tiny_data.pairs(), "file,text")
    found = loaded(tmp_path / "without", **names)
    assert found.sets[0].metric == "mean_R@1" and "no row has a label" in found.notes[0]


def test_nothing_of_the_test_split_is_chosen_on(tiny_data: TinyData) -> None:
    reference_sets = loaded(tiny_data.folder, retention_rows=9)
    (found,) = reference_sets.sets
    tests = {pair.image_path for pair in tiny_data.pairs("test")}
    others = {pair.image_path for split in ("train", "val") for pair in tiny_data.pairs(split)}
    assert found.validation.zero_shot is not None and found.test.zero_shot is not None
    chosen = set(found.validation.zero_shot.paths)
    assert len(chosen) == found.validation.n_rows == reference_sets.rows == 9
    spare = {pair.image_path for pair in found.spare}
    assert chosen | spare == others and not chosen & spare
    assert set(found.test.zero_shot.paths) == tests and not tests & (chosen | spare)
    assert found.test_split == "test" and found.metric == "acc1"
    assert Counter(found.validation.zero_shot.targets) == {0: 3, 1: 3, 2: 3}
    assert "9 rows for validation, 6 of the test split" in reference_sets.notes[0]


def test_scores_are_those_of_a_plain_count(tiny_data: TinyData) -> None:
    controller = controller_of(tiny_data.folder, retention_rows=12, prompt_templates=["only in this domain: {}"])
    reference_sets = load_reference_sets(controller.session)
    assert reference_sets is not None
    engine = controller.engine()
    rows = stratified_rows([*tiny_data.pairs("train"), *tiny_data.pairs("val")], 12, controller.config.seed)
    labels = sorted({pair.label for pair in rows})
    vectors = [
        torch.nn.functional.normalize(engine.encode_texts([t.format(label) for t in DEFAULT_TEMPLATES]).mean(0), dim=0)
        for label in labels
    ]
    right = 0
    for pair in rows:
        image = engine.encode_images([pair.image_path])[0]
        right += labels[max(range(3), key=lambda k: float(image @ vectors[k]))] == pair.label
    name = tiny_data.folder.name
    assert reference_sets.on_validation() == {name: pytest.approx(right / 12)}
    during = reference_sets.during()
    assert during["reference_mean"] == during[f"reference_{name}"] == pytest.approx(right / 12)


def test_what_a_domain_does_to_its_images_is_not_done_to_these(tiny_data: TinyData) -> None:
    controller = controller_of(tiny_data.folder, image_preprocessing={"illumination": "grey_world"})
    reference_sets = load_reference_sets(controller.session)
    assert reference_sets is not None
    path = tiny_data.pairs("test")[0].image_path
    plain = controller_of(tiny_data.folder).engine().pixels([path])
    assert torch.equal(reference_sets.engine.pixels([path]), plain)
    assert not torch.equal(controller.engine().pixels([path]), plain)


def test_sets_without_labels_or_without_a_test_split(tiny_data: TinyData, tmp_path: Path) -> None:
    with open(tmp_path / "photos.csv", "w", encoding="utf-8", newline="") as handle:
        rows = [(pair.image_path, f"{pair.caption} {n}") for n, pair in enumerate(tiny_data.pairs())]
        csv.writer(handle).writerows([("image_path", "caption"), *rows])
    reference_sets = loaded(tmp_path / "photos.csv", tiny_data.folder, train_split=0.8, val_split=0.2, test_split=0.0)
    without, labelled = reference_sets.sets
    assert (without.name, without.metric, without.test_split) == ("photos", "mean_R@1", "validation")
    assert (labelled.metric, labelled.test_split) == ("acc1", "test")
    scores = reference_sets.on_validation()
    assert reference_sets.during()["reference_mean"] == pytest.approx(sum(scores.values()) / 2)
    before = reference_sets.on_test()
    after = {name: {key: value / 2 for key, value in part.items()} for name, part in before.items()}
    reported = reference_sets.report(before, after)
    assert reported["before"] == {
        # Every set has retrieval figures, one has classes.
        "acc1": before[labelled.name]["acc1"],
        "mean_R@1": pytest.approx((before["photos"]["mean_R@1"] + before[labelled.name]["mean_R@1"]) / 2),
    }
    write_run(tmp_path / "report", {"reference_sets": reported})
    page = pages(tmp_path / "report")
    assert "| photos | mean of i2t and t2i R@1 | validation | 9 |" in page
    assert f"| {labelled.name} | classification accuracy (acc1) | test | 6 |" in page


def test_names_tell_sets_apart(tiny_data: TinyData, tmp_path: Path) -> None:
    link = tmp_path / tiny_data.folder.name
    link.symlink_to(tiny_data.folder)
    names = [part.name for part in loaded(tiny_data.folder, link, tiny_data.table("train")).sets]
    base = tiny_data.folder.name
    assert names == [base, f"{base} (2)", f"{base}/train"]
    (tmp_path / "mean").symlink_to(tiny_data.folder)
    scores = loaded(tmp_path / "mean", tiny_data.folder).during()
    assert list(scores) == ["reference_mean", f"reference_{tmp_path.name}/mean", f"reference_{base}"]


def test_a_set_that_cannot_be_used_is_an_error_that_names_it(tiny_data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_reference_sets(controller_of(tmp_path / "nowhere").session)
    (tmp_path / "x.jpg").write_bytes(b"no image")
    (tmp_path / "bad.csv").write_text("image_path,caption,label\nx.jpg,a,b\n")
    with pytest.raises(DataError, match=r"bad\.csv has no row that can be used"):
        load_reference_sets(controller_of(tmp_path / "bad.csv").session)
    assert load_reference_sets(controller_of(retention_data=None).session) is None


def test_figures_before_training_are_read_again_on_resumption(tiny_data: TinyData, tmp_path: Path) -> None:
    reference_sets = loaded(tiny_data.folder)
    kept = tmp_path / "before.json"
    first = reference_sets.before(kept)
    assert first == reference_sets.on_test()
    two = loaded(tiny_data.folder, tiny_data.folder)  # a set more, and the weights it is to be measured with
    more = two.before(kept, resumed=True)
    assert list(more) == [part.name for part in two.sets] and list(more.values()) == [*first.values()] * 2
    changed = loaded(tiny_data.table("train"))
    changed.sets[0] = dataclasses.replace(changed.sets[0], name=reference_sets.sets[0].name)
    assert changed.before(kept, resumed=True) == changed.on_test(), "that name had other rows"
    reference_sets.before(kept)
    with torch.no_grad():
        for one in (reference_sets, two):
            for parameter in one.engine.encoder.parameters():
                parameter.neg_()
    assert reference_sets.before(kept, resumed=True) == first != reference_sets.on_test()
    with pytest.raises(ConfigurationError, match="other weights now than when the run began"):
        two.before(kept, resumed=True)
