"""The caches of embeddings beside a plain model, and what becomes of them on a bad disk."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.errors import ConfigurationError
from domainclip.service import cache
from domainclip.service.cache import _OVERHEAD, DiskCache, VectorCache
from domainclip.service.metrics import ServiceMetrics

DIM = 8


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def vector(number: int) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(DIM).astype(np.float32)


ENTRY = 32 + 4 * DIM + _OVERHEAD


@given(
    room=st.integers(0, 5),
    steps=st.lists(st.tuples(st.sampled_from(["get", "put", "clear"]), st.integers(0, 7)), max_size=40),
)
def test_the_cache_keeps_those_used_last(room: int, steps: list[tuple[str, int]]) -> None:
    metrics = ServiceMetrics()
    real, model, gone = VectorCache(room * ENTRY, metrics), dict[int, None](), 0
    for step, number in steps:
        if step == "clear":
            real.clear()
            model.clear()
        elif step == "get":
            found = real.get(key(number))
            assert (found is not None) == (number in model)
            if found is not None:
                np.testing.assert_array_equal(found, vector(number))
                model[number] = model.pop(number)  # used last
        elif room:
            real.put(key(number), vector(number))
            model.pop(number, None)
            model[number] = None
            if len(model) > room:
                del model[next(iter(model))]
                gone += 1
        else:
            real.put(key(number), vector(number))
        assert list(real._vectors) == [key(each) for each in model]
        assert real._bytes == ENTRY * len(model) <= real.limit
    assert metrics.cache_evictions_total._value.get() == gone
    assert metrics.cache_bytes._value.get() in (0, ENTRY * len(model))


def test_the_limit_holds_under_threads() -> None:
    real = VectorCache(20 * ENTRY, ServiceMetrics())
    over: list[int] = []

    def work(seed: int) -> None:
        for number in np.random.default_rng(seed).integers(0, 60, 2000):
            real.put(key(int(number)), vector(int(number)))
            found = real.get(key(int(number) // 2))
            if found is not None:
                np.testing.assert_array_equal(found, vector(int(number) // 2))
            with real._lock:
                if real._bytes > real.limit:
                    over.append(real._bytes)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert over == []
    assert real._bytes == ENTRY * len(real._vectors) <= real.limit


def test_a_row_does_not_keep_its_batch() -> None:
    real = VectorCache(10 * ENTRY, ServiceMetrics())
    batch = np.zeros((1000, DIM), np.float32)
    real.put(key(1), batch[3])
    found = real.get(key(1))
    assert found is not None and found.base is None


def test_what_is_too_large_is_not_kept() -> None:
    real = VectorCache(ENTRY - 1, ServiceMetrics())
    real.put(key(1), vector(1))
    assert real.get(key(1)) is None and real._bytes == 0


# On disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


def written(path: Path, numbers: range = range(50)) -> None:
    disk = DiskCache(path)
    for number in numbers:
        disk.put(key(number), vector(number))
    disk.close()


def readable(path: Path, numbers: range = range(50)) -> int:
    """How many are found; none of them may be wrong."""
    disk = DiskCache(path)
    found = disk.get([key(number) for number in numbers])
    for number in numbers:
        if key(number) in found:
            np.testing.assert_array_equal(found[key(number)], vector(number))
    disk.close()
    return len(found)


def test_the_file_outlives_the_service(path: Path) -> None:
    written(path)
    assert readable(path) == 50
    written(path, range(25, 75))  # some of them again
    assert readable(path, range(100)) == 75
    assert path.stat().st_mode & 0o77 == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_nothing_wrong(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("damaged") / "cache"
    written(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    # Nothing else is raised, and nothing wrong found.
    with suppress(ConfigurationError):
        readable(path)


@pytest.mark.parametrize("stored", [b"", b"abc", b"\0" * 33, "text", 5, None, b"\0" * 36])
def test_a_row_that_no_cache_has_written_is_not_believed(path: Path, stored: object) -> None:
    written(path, range(0))
    with sqlite3.connect(path) as database:
        if stored is None:
            database.execute("DROP TABLE embeddings")
        else:
            database.execute("INSERT INTO embeddings VALUES (?, ?)", (key(1), stored))
    database.close()
    disk = DiskCache(path)
    assert disk.get([key(1)]) == {}
    disk.put(key(1), vector(1))
    disk.close()
    assert readable(path, range(1, 2)) == 1


def test_embeddings_that_changed_places_are_not_believed(path: Path) -> None:
    written(path, range(2))
    with sqlite3.connect(path) as database:
        (content,) = database.execute("SELECT vector FROM embeddings WHERE key = ?", (key(0),)).fetchone()
        database.execute("UPDATE embeddings SET vector = ? WHERE key = ?", (content, key(1)))
    database.close()
    assert readable(path, range(2)) == 1


@pytest.mark.parametrize("content", [b"hello, this is no database at all" * 200, b"SQLite format 3\0" + b"\xff" * 5000])
def test_another_file_is_said_to_be_one(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="Name another file, or remove this one") as caught:
        DiskCache(path)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cache", tmp_path):
        with pytest.raises(ConfigurationError, match="cannot be used"):
            DiskCache(place)
    if os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(ConfigurationError, match="cannot be used"):
            DiskCache(tmp_path / "closed" / "cache")


@pytest.mark.parametrize("fails", ["open", "write"])
def test_a_full_disk_costs_no_request(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fails: str
) -> None:
    written(path)
    disk = DiskCache(path)
    inner = DiskCache._open

    def full(self: DiskCache) -> sqlite3.Connection:
        if threading.current_thread() is not disk._writer:
            return inner(self)
        if fails == "open":
            raise sqlite3.OperationalError("unable to open database file")
        database = inner(self)
        database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
        return database

    monkeypatch.setattr(DiskCache, "_open", full)
    for number in range(1000, 1000 + cache._TOGETHER):
        disk.put(key(number), vector(number))
    while disk._entries.qsize():
        time.sleep(0.01)
    assert len(disk.get([key(number) for number in range(50)])) == 50
    monkeypatch.undo()
    disk.put(key(60), vector(60))  # there is room again
    disk.close()
    assert readable(path) == 50 and readable(path, range(60, 61)) == 1
    assert any("cannot be written into the cache" in record.getMessage() for record in caplog.records)


def test_more_than_the_disk_can_take_is_left_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_WAITING", 5)
    disk = DiskCache(path)
    entered, go_on = threading.Event(), threading.Event()
    inner = DiskCache._open

    def slow(self: DiskCache) -> sqlite3.Connection:
        if threading.current_thread() is disk._writer:
            entered.set()
            assert go_on.wait(20)
        return inner(self)

    monkeypatch.setattr(DiskCache, "_open", slow)
    disk.put(key(0), vector(0))
    assert entered.wait(20)
    for number in range(1, 50):
        disk.put(key(number), vector(number))  # waits for nothing
    go_on.set()
    disk.close()
    monkeypatch.undo()
    assert 1 <= readable(path) <= 6


def _write_and_read(path: Path, start: int) -> None:
    for turn in range(5):
        disk = DiskCache(path)
        for number in range(start, start + 100):
            disk.put(key(number), vector(number))
        for number in range(0, 200, 7):
            found = disk.get([key(number)])
            assert not found or (found[key(number)] == vector(number)).all(), turn
        disk.close()


def test_two_processes_share_one_file(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_write_and_read, args=(path, start)) for start in (0, 100, 50)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0, 0]
    assert readable(path, range(200)) >= 150  # a lock that takes too long costs a few


def test_the_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_MOST_ROWS", 100)
    path = tmp_path / "cache.sqlite"
    for first in range(0, 1000, 50):
        disk = DiskCache(path)
        for number in range(first, first + 50):
            disk.put(number.to_bytes(4), np.full(4, number, np.float32))
        disk.close()
    disk = DiskCache(path)
    found = disk.get([number.to_bytes(4) for number in range(1000)])
    disk.close()
    assert 50 <= len(found) <= 150
    assert all((vector == int.from_bytes(key)).all() for key, vector in found.items())
    assert (999).to_bytes(4) in found and (0).to_bytes(4) not in found
