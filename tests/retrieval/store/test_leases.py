"""Nobody has what another has; numbers grow; the dead have nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from domainclip.retrieval.store.leases import Leases


def test_a_claim_excludes_until_it_is_released(tmp_path: Path) -> None:
    ours, theirs = Leases(tmp_path), Leases(tmp_path)
    lease = ours.claim("work")
    assert lease is not None
    assert lease.is_held
    assert theirs.claim("work") is None
    assert theirs.claim("other work") is not None
    assert set(theirs.live()) == {"work", "other work"}
    lease.release()
    assert not lease.is_held
    second = theirs.claim("work")
    assert second is not None
    assert second.token == lease.token + 1


def test_a_claim_that_nobody_touches_runs_out_and_is_outnumbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = Leases(tmp_path, seconds=0.2)
    with monkeypatch.context() as asleep:
        asleep.setattr(os, "utime", lambda *_: None)
        lease = leases.claim("work")
        assert lease is not None
        time.sleep(0.4)
    second = leases.claim("work")
    assert second is not None
    assert (lease.is_held, second.is_held) == (False, True)
    second.release()
    assert not lease.is_held, "also once the other has ended"


def test_a_claim_that_is_touched_lasts(tmp_path: Path) -> None:
    leases = Leases(tmp_path, seconds=0.2)
    lease = leases.claim("work")
    time.sleep(0.6)
    assert lease is not None
    assert lease.is_held
    assert leases.claim("work") is None
    lease.release()


def _claim_and_die(folder: Path) -> None:
    Leases(folder).claim("work")
    os._exit(9)


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(tmp_path,))
    process.start()
    process.join()
    assert Leases(tmp_path).live() == []
    assert Leases(tmp_path).claim("work") is not None


def test_one_of_another_machine_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "work.1.lease").write_text(json.dumps({"host": "elsewhere", "pid": 1, "began": None}))
    assert Leases(tmp_path, seconds=30).claim("work") is None
    os.utime(tmp_path / "work.1.lease", (1, 1))
    assert Leases(tmp_path, seconds=30).claim("work") is not None


def _count(folder: Path, rounds: int) -> None:
    for _ in range(rounds):
        with Leases(folder).held("work"):
            number = int((folder / "number").read_text())
            time.sleep(0.001)
            (folder / "number").write_text(str(number + 1))
    os._exit(0)


def test_several_processes_never_hold_one_claim_together(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_count, args=(tmp_path, 10)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (tmp_path / "number").read_text() == "30"
