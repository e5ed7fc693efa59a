"""Checking: each planted fault is found, counted and ranked, and clean data pass."""

from __future__ import annotations

import itertools
import json
import random
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from domainclip.data.checks.captions import estimate_tokens, expected_equal_captions
from domainclip.data.checks.check import check_data
from domainclip.data.checks.duplicates import (
    CELL_DISTANCE,
    GREY_DISTANCE,
    HASH_DISTANCE,
    difference_hashes,
    fingerprint,
    near_duplicate_groups,
)
from domainclip.data.checks.findings import DataCheckReport, Finding
from domainclip.errors import ConfigurationError, DataError


def scene(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    """An image unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def table(folder: Path, rows: Sequence[Sequence[str]], name: str = "train.csv") -> Path:
    header = ["image_path", "caption", "label", "group"][: len(rows[0])]
    lines = [",".join(f'"{cell}"' for cell in row) for row in [header, *rows]]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Forty good rows in two classes, all captions distinct."""
    for i in range(40):
        scene(i).save(tmp_path / f"{i}.jpg", quality=90)
    table(tmp_path, [[f"{i}.jpg", f"caption number {i}", f"class {i % 2}"] for i in range(40)])
    return tmp_path


def append(folder: Path, *rows: Sequence[str]) -> None:
    with open(folder / "train.csv", "a", encoding="utf-8") as handle:
        handle.writelines(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows)


def only(report: DataCheckReport, name: str) -> Finding:
    (found,) = report.named(name)
    return found


def problems(report: DataCheckReport) -> set[str]:
    return {finding.name for finding in report.findings if finding.severity != "info"}


def huge_png(side: int) -> bytes:
    """A valid header of side × side pixels with next to no data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_clean_data_pass(clean: Path) -> None:
    report = check_data(clean, batch_size=8)
    assert problems(report) == set()
    assert report.exit_code == 0
    assert report.rows == {"train": 40}
    assert report.images == 40
    assert only(report, "class-balance").detail == "2 classes of 20 to 20 images (ratio 1.0)"


def test_broken_missing_and_oversized_images(clean: Path) -> None:
    whole = (clean / "0.jpg").read_bytes()
    (clean / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (clean / "empty.jpg").write_bytes(b"")
    (clean / "text.jpg").write_text("not an image")
    (clean / "bomb.png").write_bytes(huge_png(30_000))
    (clean / "half.png").write_bytes(huge_png(64))
    names = ("cut.jpg", "empty.jpg", "text.jpg", "half.png", "bomb.png", "gone.jpg")
    append(clean, *([name, f"about {name}", "class 0"] for name in names), ["1.jpg", "  ", "class 1"])
    report = check_data(clean)
    broken = only(report, "broken-images")
    assert (broken.count, broken.severity) == (4, "warning")
    assert {example.split(":")[0] for example in broken.examples} == {
        "cut.jpg",
        "empty.jpg",
        "text.jpg",
        "half.png",
    }
    bomb = only(report, "oversized-images")
    assert bomb.count == 1
    assert bomb.examples[0].startswith("bomb.png: ")
    assert "pixels" in bomb.examples[0]
    missing = only(report, "missing-images")
    assert missing.count == 1
    assert missing.examples == ["train.csv row 47: image gone.jpg is not there"]
    assert only(report, "empty-captions").examples == ["train.csv row 48: the caption is empty"]
    assert report.exit_code == 0  # training skips them
    strict = check_data(clean, strict=True)
    assert strict.exit_code == 1
    assert {finding.name for finding in strict.findings if finding.severity == "error"} == {
        *("broken-images", "oversized-images", "missing-images", "empty-captions")
    }


def test_pixel_limit_is_the_callers(clean: Path) -> None:
    assert only(check_data(clean, max_pixels=64 * 48 - 1), "oversized-images").count == 40
    assert not check_data(clean, max_pixels=64 * 48).named("oversized-images")


def test_too_few_images_that_can_be_read_are_an_error(clean: Path) -> None:
    for index in range(1, 40):
        (clean / f"{index}.jpg").write_bytes(b"\xff\xd8\xff")
    report = check_data(clean)
    assert only(report, "too-few-rows").count == 1 and report.exit_code == 1


def test_odd_but_good_images(clean: Path) -> None:
    scene(100).convert("CMYK").save(clean / "cmyk.jpg")
    deep = np.random.default_rng(0).integers(0, 65536, (40, 40), dtype=np.uint16)
    Image.fromarray(deep).save(clean / "deep.png")
    scene(101).quantize(32).save(clean / "palette.png")
    scene(102).save(clean / "moving.gif", save_all=True, append_images=[scene(103), scene(104)])
    Image.new("RGB", (1, 1), (9, 200, 9)).save(clean / "dot.png")
    names = ("cmyk.jpg", "deep.png", "palette.png", "moving.gif", "dot.png")
    append(clean, *([name, f"about {name}", "class 0"] for name in names))
    report = check_data(clean)
    assert problems(report) == {"tiny-images"}
    assert only(report, "tiny-images").examples == ["dot.png (1x1)"]
    assert only(report, "several-frames").examples == ["moving.gif (3 frames)"]


def test_duplicates_exact_near_and_contradicting(clean: Path) -> None:
    (clean / "copy.jpg").write_bytes((clean / "3.jpg").read_bytes())
    scene(4).resize((48, 36)).save(clean / "smaller.png")
    append(clean, ["copy.jpg", "another", "class 0"], ["smaller.png", "yet another", "class 0"])
    report = check_data(clean)
    exact, near = only(report, "exact-duplicates"), only(report, "near-duplicates")
    assert (exact.count, exact.examples) == (1, ["3.jpg = copy.jpg"])
    assert (near.count, near.examples) == (1, ["4.jpg = smaller.png"])
    assert only(report, "conflicting-labels").examples == ["3.jpg: class 0, class 1"]
    assert not check_data(clean, near_duplicates=False).named("near-duplicates")


def test_leakage_between_given_splits(clean: Path) -> None:
    scene(5).resize((48, 36)).save(clean / "smaller.png")
    (clean / "copy.jpg").write_bytes((clean / "3.jpg").read_bytes())
    table(clean, [[f"{i}.jpg", f"caption {i}", f"class {i % 2}", f"g{i}"] for i in range(20)])
    test = [[f"{i}.jpg", f"caption {i}", f"class {i % 2}", f"h{i}"] for i in range(20, 40)]
    table(clean, test, "test.csv")
    assert problems(check_data(clean)) == set()
    table(
        clean,
        [
            *test,
            ["0.jpg", "x", "class 0", "k"],
            ["copy.jpg", "y", "class 1", "l"],
            ["smaller.png", "z", "class 2", "g7"],
        ],
        "test.csv",
    )
    report = check_data(clean)
    shared = only(report, "shared-images")
    assert (shared.count, shared.severity) == (2, "warning")
    assert "train and test" in shared.detail
    groups = only(report, "shared-groups")
    assert (groups.count, groups.examples, groups.severity) == (1, ["g7"], "warning")
    near = only(report, "shared-near-duplicates")
    assert (near.count, near.severity) == (1, "warning")
    assert only(report, "unseen-classes").examples == ["class 2"]
    assert report.exit_code == 0


def test_groups_of_meta_csv_count_as_leakage(clean: Path) -> None:
    table(clean, [[f"{i}.jpg", f"caption {i}", f"class {i % 2}"] for i in range(20)])
    table(clean, [[f"{i}.jpg", f"caption {i}", f"class {i % 2}"] for i in range(20, 40)], "test.csv")
    (clean / "meta.csv").write_text("image_path,group\n" + "".join(f"{i}.jpg,p{i // 8}\n" for i in range(40)))
    assert only(check_data(clean), "shared-groups").examples == ["p2"]


def test_captions_that_are_cut(clean: Path) -> None:
    append(clean, ["0.jpg", "cell " * 2000, "class 0"])  # 10,000 characters
    report = check_data(clean)
    cut = only(report, "captions-cut")
    assert (cut.count, cut.severity) == (1, "warning")
    assert "estimated" in cut.detail
    assert "the longest has 2002" in cut.detail
    seen: list[str] = []

    def count(texts: list[str]) -> list[int]:
        seen.extend(texts)
        return [len(text) for text in texts]

    cut = only(check_data(clean, count_tokens=count, max_tokens=16), "captions-cut")
    assert len(seen) == 41
    assert cut.count == 1 + 30  # "caption number 7" has 16 letters, "caption number 12" has 17
    assert "estimated" not in cut.detail


def test_estimate_against_the_reference_tokenizer(shared_data: Path) -> None:
    import csv

    with open(shared_data / "clip_tokenizer" / "golden_tokens.csv", encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    true = np.array([len(row["token_ids"].split()) for row in rows])
    guess = np.array(estimate_tokens([row["caption"] for row in rows]))
    assert abs(guess.sum() / true.sum() - 1) < 0.05
    assert np.quantile(np.abs(guess - true) / true, 0.95) < 0.15


def test_expected_equal_captions_against_every_batch() -> None:
    captions = ["a", "a", "a", "b", "b", "c"]
    for size in (1, 2, 3, 6):
        counts = [
            sum(batch[i] == batch[j] for j in range(size) if j != i)
            for batch in itertools.combinations(captions, size)
            for i in range(size)
        ]
        assert expected_equal_captions(captions, size) == pytest.approx(sum(counts) / len(counts))
    assert expected_equal_captions(["a"], 8) == 0.0


def test_repeated_captions_and_batch_size(clean: Path) -> None:
    table(clean, [[f"{i}.jpg", f"caption {i % 4}", f"class {i % 2}"] for i in range(40)])
    report = check_data(clean, batch_size=14)
    assert only(report, "repeated-captions").count == 40
    false = only(report, "false-negatives")
    assert false.severity == "warning"
    assert "3.00 others" in false.detail  # 13 others, of 39 rows 9 have the same caption
    rows = only(check_data(clean, batch_size=64), "rows-below-batch")
    assert "fewer than the batch size 64" in rows.detail
    table(clean, [[f"{i}.jpg", "the same", "class 0"] for i in range(10)])
    assert only(check_data(clean), "one-caption").severity == "error"
    table(clean, [["0.jpg", "alone", "class 0"]])
    assert only(check_data(clean), "too-few-rows").severity == "error"
    with pytest.raises(ConfigurationError, match="Batch size must be positive"):
        check_data(clean, batch_size=0)


def test_classes(clean: Path) -> None:
    table(
        clean,
        [[f"{i}.jpg", f"caption {i}", "rare" if i == 0 else "" if i == 1 else "common"] for i in range(40)],
    )
    report = check_data(clean)
    balance = only(report, "class-balance")
    assert balance.severity == "warning"
    assert "ratio 38.0" in balance.detail
    assert only(report, "single-image-classes").examples == ["rare"]
    assert only(report, "unlabelled-rows").count == 1
    table(clean, [[f"{i}.jpg", f"caption {i}", "common"] for i in range(40)])
    assert only(check_data(clean), "one-class").severity == "warning"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is empty"),
        ("image_path,words\n0.jpg,x\n", "Missing 'caption' column"),
        ("image_path,caption\n", "No valid"),
    ],
)
def test_unreadable_table_is_a_finding_and_the_rest_is_checked(clean: Path, content: str, text: str) -> None:
    (clean / "test.csv").write_text(content)
    report = check_data(clean)
    finding = only(report, "unreadable-table")
    assert finding.severity == "error"
    assert text in finding.examples[0]
    assert report.rows == {"train": 40}
    assert report.exit_code == 1


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Data not found"):
        check_data(tmp_path / "none.csv")


def test_report_for_programs_and_people(clean: Path) -> None:
    append(clean, ["gone.jpg", "[bold]about[/bold] [1]", "class 0"])
    (clean / "[red]x.jpg").write_bytes((clean / "0.jpg").read_bytes())
    append(clean, ["[red]x.jpg", "a copy", "class 0"])
    report = check_data(clean, strict=True)
    loaded = json.loads(json.dumps(report.to_dict()))
    assert loaded["exit_code"] == report.exit_code == 1
    assert [f["severity"] for f in loaded["findings"]] == sorted(
        (f["severity"] for f in loaded["findings"]), key=("error", "warning", "info").index
    )
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.render(), soft_wrap=True)
    text = console.export_text()
    assert "missing-images" in text
    assert "[red]x.jpg" in text
    assert "1 error, 1 warning" in text


def test_near_duplicates_equal_the_slow_search() -> None:
    rng = np.random.default_rng(3)
    originals = [fingerprint(np.asarray(scene(seed))) for seed in range(60)]
    prints = list(originals)
    for base in originals[:40]:
        noise = rng.integers(-6, 7, base.shape) * rng.integers(0, 3)
        prints.append(np.clip(base.astype(int) + noise, 0, 255).astype(np.uint8))
    # Low contrast: noise turns several bits while the grey levels stay close.
    for base in originals:
        faint = (base // 12 + 80).astype(int)
        prints += [(faint + rng.integers(-2, 3, base.shape)).astype(np.uint8) for _ in range(2)]
    # Flat images all hash to 0: grey levels alone tell them apart.
    prints += [np.full((16, 18), level, np.uint8) for level in (0, 0, 2, 100, 101, 255)]
    stack = np.stack(prints)
    hashes = [int(value) for value in difference_hashes(stack)]
    edges = {
        (i, j)
        for i, j in itertools.combinations(range(len(prints)), 2)
        if (hashes[i] ^ hashes[j]).bit_count() <= HASH_DISTANCE
        and (apart := np.abs(prints[i].astype(int) - prints[j].astype(int))).mean() <= GREY_DISTANCE
        and apart.max() <= CELL_DISTANCE
    }
    bands = [[(hashes[i] ^ hashes[j]) >> shift & 0xFFFF for shift in (0, 16, 32, 48)] for i, j in edges]
    assert any(all(band) for band in bands), "no pair that differs in every band: the test would be too easy"
    groups = {frozenset([i]) for i in range(len(prints))}
    for i, j in edges:
        one, other = (next(group for group in groups if k in group) for k in (i, j))
        groups = (groups - {one, other}) | {one | other}
    expected = {group for group in groups if len(group) > 1}
    found = near_duplicate_groups(stack)
    assert {frozenset(group) for group in found} == expected
    assert len(expected) > 10
    order = list(range(len(prints)))
    random.Random(1).shuffle(order)
    assert {frozenset(order[k] for k in group) for group in near_duplicate_groups(stack[order])} == expected


def test_resaved_copies_are_near_and_neighbours_are_not(shared_data: Path, tmp_path: Path) -> None:
    # Cells under one microscope look alike; only their re-saved copies may count as near.
    paths = sorted((shared_data / "med_blood_cells" / "images").glob("*.jpg"))[::5]
    prints = []
    for path in paths:
        image = Image.open(path).convert("RGB")
        prints.append(fingerprint(np.asarray(image)))
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(tmp_path / "copy.jpg", quality=80)
        prints.append(fingerprint(np.asarray(Image.open(tmp_path / "copy.jpg"))))
    groups = near_duplicate_groups(np.stack(prints))
    true = [group for group in groups if len(group) == 2 and group[0] % 2 == 0 and group[1] == group[0] + 1]
    assert len(true) >= 0.9 * len(paths)
    assert len(groups) - len(true) <= 0.01 * len(paths)


def test_real_sets(shared_data: Path) -> None:
    for name in ("fixture_tiny", "med_blood_cells"):
        report = check_data(shared_data / name, batch_size=32)
        assert report.exit_code == 0, [f for f in report.findings if f.severity == "error"]
        manifest = (shared_data / name / "manifest.sha256").read_text(encoding="utf-8").splitlines()
        images = [line.split()[0] for line in manifest if "images/" in line]
        assert report.images == len(images)
        copies = len(images) - len(set(images))
        assert sum(finding.count for finding in report.named("exact-duplicates")) == copies


def test_a_table_of_test_rows_alone_is_said_to_train_nothing(clean: Path) -> None:
    table = clean / "train.csv"
    header, *lines = table.read_text(encoding="utf-8").splitlines()
    table.unlink()
    for other in clean.glob("*.csv"):
        other.unlink()
    rows = "\n".join([f"{header},split", *(f"{line},test" for line in lines)])
    (clean / "rows.csv").write_text(rows, encoding="utf-8")
    found = only(check_data(clean / "rows.csv"), "no-training-rows")
    assert (found.severity, found.count) == ("error", len(lines))
