"""Splitting: nothing that belongs together is separated, and every decision is told."""

from __future__ import annotations

import csv
import itertools
import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from domainclip.data.records import ImageTextPair, PairList, SkippedRow
from domainclip.data.splits import load_splits, split_pairs
from domainclip.errors import ConfigurationError, DataError


def make(n: int, classes: int = 4, groups: int | None = None) -> list[ImageTextPair]:
    rng = random.Random(5)
    return [
        ImageTextPair(
            f"/data/x/{i}.jpg", f"caption {i}", f"class {i % classes}", groups and f"g{rng.randrange(groups)}"
        )
        for i in range(n)
    ]


def groups_of(pairs: PairList) -> set:
    return {pair.group for pair in pairs}


rows = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from([None, "a", "b", "c"]), st.none() | st.integers(0, 12).map(str)),
    max_size=60,
)
ratios = st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (0.2, 0.0, 0.8), (1.0, 0.0, 0.0)])


@settings(max_examples=150, deadline=None)
@given(rows, ratios, st.integers(0, 5), st.randoms(use_true_random=False))
def test_partition_keeps_groups_images_and_promises(
    data: list, fractions: tuple[float, float, float], seed: int, shuffler: random.Random
) -> None:
    pairs = [ImageTextPair(f"d/{p}.jpg", f"{i}", label, group) for i, (p, label, group) in enumerate(data)]
    parts = split_pairs(pairs, *fractions, seed=seed)
    assert sorted(itertools.chain(*parts)) == sorted(pairs)
    for part, fraction in zip(parts, fractions, strict=True):
        assert fraction > 0 or not part
    for one, other in itertools.combinations(parts, 2):
        assert not {p.image_path for p in one} & {p.image_path for p in other}
        assert not (groups_of(one) & groups_of(other)) - {None}
    # Independent components, by repeated merging.
    sets: list[tuple[set, set]] = []
    for pair in pairs:
        keys = {pair.image_path} | ({pair.group} if pair.group else set())
        labels = {pair.label}
        for old in [s for s in sets if s[0] & keys]:
            keys |= old[0]
            labels |= old[1]
            sets.remove(old)
        sets.append((keys, labels))
    in_train = {pair.label for pair in parts[0]}
    for label, count in Counter(label for _, labels in sets for label in labels).items():
        assert count < 3 or label in in_train
    if len(sets) >= sum(fraction > 0 for fraction in fractions) and not any(
        c >= 3 for c in Counter(label for _, labels in sets for label in labels).values()
    ):
        assert all(part or fraction == 0 for part, fraction in zip(parts, fractions, strict=True))
    shuffled = pairs[:]
    shuffler.shuffle(shuffled)
    assert [set(part) for part in split_pairs(shuffled, *fractions, seed=seed)] == [set(part) for part in parts]


def test_stratified_within_a_row_of_each_fraction() -> None:
    train, val, test = split_pairs(make(400, classes=4))
    for part, fraction in ((train, 80), (val, 10), (test, 10)):
        for count in Counter(pair.label for pair in part).values():
            assert abs(count - fraction) <= 1
    assert [pair.caption for pair in train] == sorted((pair.caption for pair in train), key=lambda c: int(c.split()[1]))


def test_groups_of_unequal_size_still_come_close() -> None:
    pairs = make(1200, classes=3, groups=150)
    parts = split_pairs(pairs)
    for part, fraction in zip(parts, (0.8, 0.1, 0.1), strict=True):
        for count in Counter(pair.label for pair in part).values():
            assert abs(count - fraction * 400) <= 6


def test_many_small_classes_leave_rows_for_validation_and_test() -> None:
    train, val, test = split_pairs(make(60, classes=20))
    assert {pair.label for pair in train} == {f"class {i}" for i in range(20)}
    assert 4 <= len(val) <= 7
    assert 4 <= len(test) <= 7


def test_a_class_of_three_groups_is_trained_even_at_a_small_fraction() -> None:
    train, _, test = split_pairs(make(30, classes=10), 0.1, 0.0, 0.9)
    # A tenth of three rows rounds to none; the promise of one row in train goes first.
    assert {pair.label for pair in train} == {pair.label for pair in test} == {f"class {i}" for i in range(10)}
    assert len(train) == 10


def test_seed_and_folder() -> None:
    pairs = make(200)
    first, again, other = split_pairs(pairs), split_pairs(pairs), split_pairs(pairs, seed=43)
    assert first == again
    assert first[1] != other[1]
    moved = [ImageTextPair(f"/else/where/x/{p.image_path.name}", p.caption, p.label, p.group) for p in pairs]
    assert [[p.caption for p in part] for part in split_pairs(moved)] == [[p.caption for p in part] for part in first]


def test_same_image_under_two_spellings_stays_together() -> None:
    pairs = [
        ImageTextPair(path, f"{i}") for i in range(40) for path in (f"d/{i}.jpg", f"d/../d/{i}.jpg", f"d//{i}.jpg")
    ]
    for part in split_pairs(pairs):
        assert all(count == 3 for count in Counter(pair.caption for pair in part).values())


def test_skipped_rows_and_plain_tuples() -> None:
    source = PairList(make(10), "here", [SkippedRow("t.csv row 3", "x", "gone")])
    train, val, test = split_pairs(source)
    assert (len(train.skipped), val.skipped, test.skipped) == (1, [], [])
    assert train.source == "here"
    assert sum(map(len, split_pairs([(Path("a.jpg"), "x"), (Path("b.jpg"), "y")]))) == 2  # type: ignore[list-item]


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.2), (0.0, 0.5, 0.5), (1.2, -0.1, -0.1), (0.8, 0.1, 0.0)])
def test_wrong_ratios(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigurationError, match="Split ratios must"):
        split_pairs(make(10), *fractions)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(40):
        Image.new("L", (4, 4), i).save(tmp_path / f"{i}.png")
    return tmp_path


def table(path: Path, numbers: range, group: int | None = None) -> None:
    with open(path, "w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_path", "caption", "label"] + (["group"] if group else []))
        for i in numbers:
            writer.writerow([f"{i}.png", f"caption {i}", f"class {i % 2}"] + ([f"g{i // group}"] if group else []))


def test_given_splits_are_kept_and_validation_comes_from_train(folder: Path) -> None:
    table(folder / "train.csv", range(30), group=3)
    table(folder / "test.csv", range(30, 40), group=5)
    splits = load_splits(folder)
    assert [pair.caption for pair in splits.test] == [f"caption {i}" for i in range(30, 40)]
    assert sorted(int(p.caption.split()[1]) for p in splits.train + splits.val) == list(range(30))
    assert 0 < len(splits.val) <= 6
    assert not groups_of(splits.train) & groups_of(splits.val)
    groups = len(groups_of(splits.val))
    assert any(
        note.startswith(f"validation: {len(splits.val)} rows in {groups} group") and "cut from train.csv" in note
        for note in splits.notes
    )


@pytest.mark.parametrize("name", ["val", "validation", "valid", "dev"])
def test_all_given(folder: Path, name: str) -> None:
    table(folder / "train.csv", range(20))
    table(folder / f"{name}.csv", range(20, 30))
    table(folder / "test.csv", range(30, 40))
    splits = load_splits(folder)
    assert [len(splits.train), len(splits.val), len(splits.test)] == [20, 10, 10]
    assert not any("cut from" in note for note in splits.notes)


def test_missing_test_is_cut_from_train_not_from_validation(folder: Path) -> None:
    table(folder / "train.csv", range(30))
    table(folder / "val.csv", range(30, 40))
    splits = load_splits(folder)
    assert [pair.caption for pair in splits.val] == [f"caption {i}" for i in range(30, 40)]
    # A ninth of 30 rows in two classes of 15: two of each, or one less.
    assert (len(splits.train), len(splits.test)) in {(27, 3), (26, 4)}
    assert any(note.startswith(f"test: {len(splits.test)} rows cut from train.csv") for note in splits.notes)
    splits = load_splits(folder, train_split=0.9, val_split=0.1, test_split=0.0)
    assert (len(splits.train), len(splits.test)) == (30, 0)
    assert any(note.startswith("test: none") for note in splits.notes)


def test_one_table_is_divided_and_small_ones_say_what_is_empty(folder: Path) -> None:
    table(folder / "all.csv", range(40), group=2)
    splits = load_splits(folder / "all.csv")
    assert [len(splits.train), len(splits.val), len(splits.test)] == [32, 4, 4]
    assert "divided 0.8 / 0.1 / 0.1 with seed 42" in splits.notes[0]
    table(folder / "all.csv", range(2))
    splits = load_splits(folder)
    assert len(splits.train) == 2
    assert any(note.startswith("validation is empty") for note in splits.notes)


def test_groups_come_from_meta(folder: Path) -> None:
    table(folder / "train.csv", range(30))
    table(folder / "test.csv", range(30, 40))
    with open(folder / "meta.csv", "w", encoding="utf-8") as handle:
        handle.write("image_path,group\n" + "".join(f"{i}.png,patient {i // 6}\n" for i in range(40)))
    splits = load_splits(folder)
    assert groups_of(splits.train) | groups_of(splits.val) == {f"patient {i}" for i in range(5)}
    assert not groups_of(splits.train) & groups_of(splits.val)
    (folder / "meta.csv").write_text("image_path,width\n0.png,4\n")
    assert any("meta.csv is not used" in note for note in load_splits(folder).notes)


def test_shared_groups_and_images_are_told(folder: Path) -> None:
    table(folder / "train.csv", range(22), group=4)
    table(folder / "test.csv", range(20, 40), group=4)
    notes = "\n".join(load_splits(folder).notes)
    assert "Warning: 1 group in both" in notes
    assert "Warning: 2 images in both" in notes or notes.count("1 image in both") == 2


def test_folders_named_as_splits(folder: Path) -> None:
    for i in range(40):
        target = folder / "d" / ("train" if i < 30 else "test") / f"class_{i % 2}"
        target.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").rename(target / f"{i}.png")
    splits = load_splits(folder / "d")
    assert (len(splits.train) + len(splits.val), len(splits.test)) == (30, 10)
    assert {pair.label for pair in splits.train} == {"class 0", "class 1"}


def test_train_may_be_a_class_of_vehicles(folder: Path) -> None:
    for i in range(40):
        target = folder / "d" / ("train" if i < 20 else "bus")
        target.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.png").rename(target / f"{i}.png")
    assert {pair.label for pair in load_splits(folder / "d").train} == {"train", "bus"}


def test_two_files_for_one_split(folder: Path) -> None:
    table(folder / "train.csv", range(4))
    table(folder / "val.csv", range(4, 8))
    table(folder / "validation.csv", range(4, 8))
    with pytest.raises(DataError, match=r"val\.csv and validation\.csv.*validation split"):
        load_splits(folder)


def test_rows_skipped_are_noted(folder: Path) -> None:
    table(folder / "train.csv", range(42))
    table(folder / "test.csv", range(30, 40))
    said = r"train\.csv: 2 rows skipped \(missing image: 2\), first train\.csv row 42"
    assert any(re.search(said, note) for note in load_splits(folder).notes)
    with pytest.raises(DataError, match=r"train\.csv row 42"):
        load_splits(folder, strict=True)


def test_real_sets(shared_data: Path) -> None:
    for name in ("fixture_tiny", "med_blood_cells", "ind_solar_cells"):
        with open(shared_data / name / "meta.csv", encoding="utf-8", newline="") as handle:
            meta = {Path(row["image_path"]).name: row for row in csv.DictReader(handle)}
        splits = load_splits(shared_data / name)
        seen = [
            {meta[pair.image_path.name]["group"] for pair in part} for part in (splits.train, splits.val, splits.test)
        ]
        assert not any(one & other for one, other in itertools.combinations(seen, 2))
        assert {meta[pair.image_path.name]["split"] for pair in splits.test} == {"test"}
        rows = len(splits.train) + len(splits.val)
        assert abs(len(splits.val) / rows - 1 / 9) < 0.02
        assert not [note for note in splits.notes if note.startswith("Warning")]
