"""A store holds what the data hold, whatever became of them, and however often its workers were killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from domainclip.errors import ConfigurationError, DamagedFileError
from domainclip.retrieval.store import store as store_file
from domainclip.retrieval.store.shards import StoredRow, read_embeddings, read_rows
from domainclip.retrieval.store.store import MANIFEST, SHARDS, EmbeddingStore
from domainclip.retrieval.store.work import EmbeddingWork
from store_cases import SPACE, FakeEncoder, contents_of, digest_of, embed, stored_rows, vector_of

pytest.importorskip("pyarrow", reason="stores of embeddings are Parquet files")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(11):
        (folder / f"{number:02d}.jpg").write_bytes(b"image %d" % number)
    (folder / "05.jpg").write_bytes(b"bad file")
    return folder


def expected(folder: Path) -> dict[str, np.ndarray | None]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    contents = {str(path): path.read_bytes() for path in files}
    return {path: None if each.startswith(b"bad") else vector_of(each) for path, each in contents.items()}


def assert_same(found: dict[str, np.ndarray | None], wanted: dict[str, np.ndarray | None]) -> None:
    assert found.keys() == wanted.keys()
    for path, vector in wanted.items():
        assert (found[path] is None) == (vector is None)
        if vector is not None:
            np.testing.assert_array_equal(found[path], vector)


def test_rows_in_are_rows_out(photos: Path, tmp_path: Path) -> None:
    rows = [*stored_rows(photos, "a label"), StoredRow("/nowhere.jpg", "", "", "", "/nowhere.jpg is not there", -1, 0)]
    embed(tmp_path / "store", rows, FakeEncoder())
    store = EmbeddingStore.open(tmp_path / "store")
    found = list(store.rows())
    assert [row.path for row in found] == [row.path for row in rows]
    assert {row.label for row in found[:-1]} == {"a label"}
    assert [row.sha256 for row in found[:-1]] == [digest_of(Path(row.path)) for row in rows[:-1]]
    assert [row.error for row in found if row.error] == [f"{photos / '05.jpg'}: bad", "/nowhere.jpg is not there"]
    assert (store.generation.rows, store.generation.errors, store.generation.encoded) == (12, 2, 10)
    assert_same(contents_of(tmp_path / "store"), {**expected(photos), "/nowhere.jpg": None})


def test_a_store_that_is_up_to_date_costs_nothing(photos: Path, tmp_path: Path) -> None:
    encode = FakeEncoder()
    embed(tmp_path / "store", stored_rows(photos), encode)
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.parquet")}
    assert embed(tmp_path / "store", stored_rows(photos), encode) is None
    assert len(encode.seen) == 11
    assert {path: path.read_bytes() for path in (tmp_path / "store").rglob("*.parquet")} == before


def test_what_was_renamed_copied_or_touched_keeps_its_embedding(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    (photos / "inner").mkdir()
    for path in photos.glob("0*.jpg"):
        path.rename(photos / "inner" / f"new_{path.name}")
    shutil.copy(photos / "10.jpg", photos / "copy.jpg")
    os.utime(photos / "10.jpg", (1, 1))
    encode = FakeEncoder()
    embed(tmp_path / "store", stored_rows(photos), encode)
    assert encode.seen == [photos / "inner" / "new_05.jpg"]  # which could not be read, and is tried under its new name
    assert EmbeddingStore.open(tmp_path / "store").generation.reused == 11
    assert_same(contents_of(tmp_path / "store"), expected(photos))


def test_what_came_changed_and_went(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    (photos / "03.jpg").write_bytes(b"another image")
    (photos / "04.jpg").unlink()
    (photos / "11.jpg").write_bytes(b"a new one")
    encode = FakeEncoder()
    embed(tmp_path / "store", stored_rows(photos), encode)
    assert encode.seen == [photos / "03.jpg", photos / "11.jpg"]
    now = EmbeddingStore.open(tmp_path / "store").generation
    assert (now.number, now.added, now.removed, now.encoded, now.reused) == (2, 2, 2, 2, 0)
    assert_same(contents_of(tmp_path / "store"), expected(photos))
    files = {shard.file for shard in now.shards}
    assert {path.name for path in (tmp_path / "store" / SHARDS).iterdir()} == files, "what counts no more is gone"


def test_a_new_label_needs_no_encoding(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos, "one"), FakeEncoder())
    encode = FakeEncoder()
    embed(tmp_path / "store", stored_rows(photos, "other"), encode)
    assert encode.seen == [photos / "05.jpg"]
    assert {row.label for row in EmbeddingStore.open(tmp_path / "store").rows()} == {"other"}


def test_unreadable_files_are_tried_again_when_they_change_or_on_request(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    encode = FakeEncoder()
    assert embed(tmp_path / "store", stored_rows(photos), encode) is None
    embed(tmp_path / "store", stored_rows(photos), encode, retry=True)
    assert encode.seen == [photos / "05.jpg"]
    (photos / "05.jpg").write_bytes(b"mended")
    embed(tmp_path / "store", stored_rows(photos), encode)
    assert encode.seen == [photos / "05.jpg"] * 2
    assert_same(contents_of(tmp_path / "store"), expected(photos))


def test_a_row_that_the_data_have_twice_is_there_twice(photos: Path, tmp_path: Path) -> None:
    rows = stored_rows(photos)[:2]
    embed(tmp_path / "store", [*rows, *rows], FakeEncoder())
    assert EmbeddingStore.open(tmp_path / "store").generation.rows == 4
    assert embed(tmp_path / "store", [*rows, *rows], FakeEncoder()) is None
    embed(tmp_path / "store", rows, FakeEncoder())
    assert EmbeddingStore.open(tmp_path / "store").generation.rows == 2


def test_all_rows_may_go(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    embed(tmp_path / "store", [], FakeEncoder())
    assert contents_of(tmp_path / "store") == {}


def test_half_precision_rounds_and_nothing_else(photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    store = EmbeddingStore.create(tmp_path / "store", replace(SPACE, dtype="float16"))
    work = EmbeddingWork(store, 30.0)
    plan = work.plan(stored_rows(photos), digest_of, 4)
    assert plan is not None
    work.run(plan, FakeEncoder())
    for path in store.paths:
        for row, vector in zip(read_rows(path), read_embeddings(path), strict=True):
            wanted = np.zeros(8) if row.error else vector_of(Path(row.path).read_bytes())
            assert vector.dtype == np.float16
            np.testing.assert_array_equal(vector, wanted.astype(np.float16))


def test_the_space_of_another_model_is_refused(photos: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    with pytest.raises(ConfigurationError, match="of another model"):
        EmbeddingStore.create(tmp_path / "store", replace(SPACE, fingerprint="b" * 64))
    with pytest.raises(ConfigurationError, match="float32 numbers, and float16"):
        EmbeddingStore.create(tmp_path / "store", replace(SPACE, dtype="float16"))
    with pytest.raises(ConfigurationError, match="holds no embeddings"):
        EmbeddingStore.open(photos)
    (tmp_path / "mine" / SHARDS).mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="has not written"):
        EmbeddingStore.create(tmp_path / "mine", SPACE)


def test_half_a_line_of_the_manifest_does_not_count(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    embed(folder, stored_rows(photos), FakeEncoder())
    whole = (folder / MANIFEST).read_text()
    (folder / MANIFEST).write_text(f'{whole}{{"number": 2, "sha')
    assert EmbeddingStore.open(folder).generation.number == 1
    (photos / "new.jpg").write_bytes(b"new")
    embed(folder, stored_rows(photos), FakeEncoder())
    assert [json.loads(line).get("number") for line in (folder / MANIFEST).read_text().splitlines()] == [None, 1, 2]
    (folder / MANIFEST).write_text(f"damaged\n{whole}")
    with pytest.raises(DamagedFileError, match="is not as `embed` wrote it"):
        EmbeddingStore.open(folder)


def test_a_lost_shard_is_made_again(photos: Path, tmp_path: Path) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    lost = EmbeddingStore.open(tmp_path / "store").paths[1]
    lost.unlink()
    encode = FakeEncoder()
    embed(tmp_path / "store", stored_rows(photos), encode)
    assert len(encode.seen) == 4
    assert_same(contents_of(tmp_path / "store"), expected(photos))


def killed_at(folder: Path, photos: Path, step: int, shard_rows: int = 4) -> None:
    """A worker that dies, as by ``kill -9``, at its n-th write to the disk."""
    done = 0

    def counted(original):  # type: ignore[no-untyped-def]
        def call(*given, **more):  # type: ignore[no-untyped-def]
            nonlocal done
            done += 1
            if done == step:
                os._exit(9)
            return original(*given, **more)

        return call

    for name in ("fsync", "replace", "link", "unlink", "open"):
        setattr(os, name, counted(getattr(os, name)))
    embed(folder, stored_rows(photos), FakeEncoder(), shard_rows=shard_rows)
    os._exit(0)


def run_and_kill(folder: Path, photos: Path, step: int) -> int:
    process = multiprocessing.get_context("fork").Process(target=killed_at, args=(folder, photos, step))
    process.start()
    process.join()
    assert process.exitcode in (0, 9)
    return process.exitcode or 0


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in EmbeddingStore.open(folder).paths}


@pytest.mark.slowest
def test_killed_at_every_write_it_goes_on_with_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    embed(whole, stored_rows(photos), FakeEncoder())
    for step in range(1, 200):
        folder = tmp_path / f"killed{step}"
        if not run_and_kill(folder, photos, step):
            break
        embed(folder, stored_rows(photos), FakeEncoder())
        assert bytes_of(folder) == bytes_of(whole), step
        assert not list(folder.rglob("*.tmp"))
    assert step > 20


def test_killed_again_and_again_while_the_data_change(photos: Path, tmp_path: Path) -> None:
    draw, folder = random.Random(0), tmp_path / "store"
    for number in range(30):
        if draw.random() < 0.5:
            run_and_kill(folder, photos, draw.randint(1, 40))
        victim = photos / f"{draw.randint(0, 10):02d}.jpg"
        if victim.exists() and draw.random() < 0.3:
            victim.unlink()
        else:
            victim.write_bytes(b"image %d" % draw.randint(0, 40))
        if number % 3 == 0:
            embed(folder, stored_rows(photos), FakeEncoder())
            assert_same(contents_of(folder), expected(photos))


def test_what_a_given_up_plan_has_embedded_is_not_embedded_again(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    for step in range(1, 200):
        shutil.rmtree(folder, ignore_errors=True)
        run_and_kill(folder, photos, step)
        if len(list((folder / SHARDS).glob("*.parquet") if folder.exists() else [])) == 2:
            break
    (photos / "new.jpg").write_bytes(b"new")
    encode = FakeEncoder()
    embed(folder, stored_rows(photos), encode)
    assert len(encode.seen) < 12 - 7 + 1
    assert_same(contents_of(folder), expected(photos))


def _worker(folder: Path, photos: Path, dies: float, seed: int) -> None:
    draw = random.Random(seed)

    class Dying(FakeEncoder):
        def __call__(self, paths):  # type: ignore[no-untyped-def]
            for batch in super().__call__(paths):
                if draw.random() < dies:
                    os._exit(9)
                yield batch

    embed(folder, stored_rows(photos), Dying(), shard_rows=2)
    os._exit(0)


def test_two_workers_of_which_one_is_killed_twenty_times(photos: Path, tmp_path: Path) -> None:
    for number in range(11, 60):
        (photos / f"{number:02d}.jpg").write_bytes(b"image %d" % number)
    whole, folder, context = tmp_path / "whole", tmp_path / "store", multiprocessing.get_context("fork")
    embed(whole, stored_rows(photos), FakeEncoder(), shard_rows=2)
    kills = 0
    for seed in range(60):
        pair = [context.Process(target=_worker, args=(folder, photos, dies, seed)) for dies in (0.2, 0.1)]
        for process in pair:
            process.start()
        for process in pair:
            process.join()
        kills += sum(process.exitcode == 9 for process in pair)
        if EmbeddingStore.open(folder).generation.number == 1:
            if kills >= 20:
                break
            shutil.rmtree(folder)
    assert kills >= 20
    assert bytes_of(folder) == bytes_of(whole)
    assert_same(contents_of(folder), expected(photos))


def test_a_worker_whose_claim_ran_out_does_not_overwrite(photos: Path, tmp_path: Path) -> None:
    """It slept while another took its shard: what it would write is other bytes here, so that it would be seen."""
    store = EmbeddingStore.create(tmp_path / "store", SPACE)
    slow, fast = EmbeddingWork(store, 0.2), EmbeddingWork(store, 0.2)
    plan = slow.plan(stored_rows(photos), digest_of, 100)
    assert plan is not None

    class Sleeper(FakeEncoder):
        def __call__(self, paths):  # type: ignore[no-untyped-def]
            held = next((tmp_path / "store" / "leases").glob("*parquet*.lease"))
            os.utime(held, (1, 1))  # nobody has touched it for long
            (tmp_path / "touch").touch()
            monkey = pytest.MonkeyPatch()
            monkey.setattr(os, "utime", lambda *_: None)
            fast.run(plan, FakeEncoder())
            monkey.undo()
            for embeddings, digests, problems in super().__call__(paths):
                yield -embeddings, digests, problems

    slow.run(plan, Sleeper())
    assert_same(contents_of(tmp_path / "store"), expected(photos))


def test_other_data_meanwhile_are_refused(photos: Path, tmp_path: Path) -> None:
    work = EmbeddingWork(EmbeddingStore.create(tmp_path / "store", SPACE), 30.0)
    plan = work.plan(stored_rows(photos), digest_of, 4)
    assert plan is not None
    lease = work.leases.claim(plan.files[0])
    assert lease is not None
    with pytest.raises(ConfigurationError, match="is being filled from other data"):
        work.plan(stored_rows(photos)[:3], digest_of, 4)
    lease.release()
    assert work.plan(stored_rows(photos)[:3], digest_of, 4) is not None


def test_a_store_of_another_format_is_refused(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embed(tmp_path / "store", stored_rows(photos), FakeEncoder())
    monkeypatch.setattr(store_file, "FORMAT", 2)
    with pytest.raises(ConfigurationError, match="format 1, and this version reads 2"):
        EmbeddingStore.open(tmp_path / "store")
