"""The monitor sees what is held, interval by interval, and does not hide its errors."""

from __future__ import annotations

import gc
import mmap
import threading
import time
from collections.abc import Callable

import psutil
import pytest
import torch

from domainclip.training.memory import monitor as memory_monitor
from domainclip.training.memory.monitor import MemoryMonitor, held_bytes

MIB = 2**20


def test_resident_memory_is_read_on_the_cpu() -> None:
    held = held_bytes(torch.device("cpu"))
    assert held == pytest.approx(psutil.Process().memory_info().rss, abs=64 * MIB)
    assert held > 50 * MIB  # torch alone is more


@pytest.mark.parametrize(("device", "reader"), [("cuda", "memory_allocated"), ("mps", "driver_allocated_memory")])
def test_each_device_is_asked_its_own_way(device: str, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"torch.{device}.{reader}", lambda *_: 12345)
    assert held_bytes(torch.device(device)) == 12345


def wait_until(reached: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not reached():
        time.sleep(0.001)
        assert time.monotonic() - began < 120, "it never came to that"


def test_a_peak_between_start_and_stop_is_seen() -> None:
    gc.collect()  # what earlier tests left may not be given back meanwhile
    # Not from the heap, where earlier tests may have left as much room.
    with MemoryMonitor("cpu", interval=0.005) as monitor:
        block = mmap.mmap(-1, 96 * MIB)
        block.write(bytes(96 * MIB))  # resident by that
        wait_until(lambda seen=monitor.samples: monitor.samples >= seen + 5)  # however busy the machine is
        block.close()
    assert 64 * MIB <= monitor.peak_bytes - monitor.start_bytes <= 250 * MIB
    assert monitor.samples >= 5


def test_each_interval_has_its_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 100
    monkeypatch.setattr(memory_monitor, "held_bytes", lambda device: held)
    monitor = MemoryMonitor("cpu", interval=60).start()  # no sample but those that are asked for
    held = 700
    assert monitor.take() == 700
    held = 300
    assert monitor.take() == 300  # the first interval's peak is over
    assert monitor.take() == 300  # one without a sample of the thread takes its own
    held = 500
    assert monitor.stop() == 700
    assert (monitor.start_bytes, monitor.peak_bytes) == (100, 700)


def test_it_can_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    held = 900
    monkeypatch.setattr(memory_monitor, "held_bytes", lambda device: held)
    monitor = MemoryMonitor("cpu", interval=60)
    with monitor:
        pass
    held = 200
    with monitor:
        assert monitor.peak_bytes == 200
    assert monitor.stop() == 200  # a second stop says the same


def test_the_thread_ends_and_its_error_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([100, 200])

    def failing(device: torch.device) -> int:
        value = next(readings, None)
        if value is None:
            raise RuntimeError("the driver is gone")
        return value

    monkeypatch.setattr(memory_monitor, "held_bytes", failing)
    before = threading.active_count()
    monitor = MemoryMonitor("cpu", interval=0.001).start()
    wait_until(lambda: monitor._error is not None)
    with pytest.raises(RuntimeError, match="the driver is gone"):
        monitor.stop()
    assert threading.active_count() == before
    assert monitor.peak_bytes == 200
