"""Energy and heat from faked readings: nobody lets them be read here."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.devices.power import (
    NvidiaSmi,
    Pmset,
    Powermetrics,
    PowerSource,
    Rapl,
    Reading,
    ThrottleCounts,
    Unreadable,
    power_sources,
    run_program,
)
from domainclip.events import Event, Noted, RunFinished, RunStarted
from domainclip.tracking.energy import EnergyListener, EnergyMeter, energy_of

PMSET = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
2026-11-30 10:00:00 +0000 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 8
\tCPU_Speed_Limit \t= {limit}
"""
POWERMETRICS = """*** Sampled system activity (Mon Nov 30 10:00:00 2026 +0000) (503.17ms elapsed) ***

**** Processor usage ****
CPU Power: 812 mW
GPU Power: 4210 mW
ANE Power: 0 mW
Combined Power (CPU + GPU + ANE): {milliwatts} mW
"""


def zone(root: Path, name: str, energy: int, limit: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_rapl_adds_packages_and_leaves_their_parts_out(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 100), zone(tmp_path, "intel-rapl:1", 200)
    zone(tmp_path, "intel-rapl:0:0", 50)
    source = Rapl(tmp_path)
    zone(tmp_path, first.name, 500_100)
    zone(tmp_path, second.name, 300_200)
    zone(tmp_path, "intel-rapl:0:0", 999_999)
    assert source.read() == Reading(joules=0.8)
    assert source.read() == Reading(joules=0.0)


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(st.integers(0, 999_999), max_size=20), start=st.integers(0, 1_000_000))
def test_rapl_over_its_limit_equals_a_plain_sum(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], start: int
) -> None:
    root = tmp_path_factory.mktemp("rapl")
    zone(root, "intel-rapl:0", start)
    source, counter, found = Rapl(root), start, 0.0
    for step in steps:
        counter = (counter + step) % 1_000_001
        zone(root, "intel-rapl:0", counter)
        found += source.read().joules or 0.0
    assert found == pytest.approx(sum(steps) / 1e6)


def test_what_only_root_may_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", 1)

    def denied(self: Path, *_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(Unreadable, match="only root may read"):
        Rapl(tmp_path)


def test_throttle_counts_that_rise(tmp_path: Path) -> None:
    for cpu in range(2):
        (tmp_path / f"cpu{cpu}" / "thermal_throttle").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "thermal_throttle" / "package_throttle_count").write_text("7\n")
    source = ThrottleCounts(tmp_path)
    assert source.read() == Reading(throttled=False)
    (tmp_path / "cpu1" / "thermal_throttle" / "package_throttle_count").write_text("8\n")
    assert source.read() == Reading(throttled=True)
    assert source.read() == Reading(throttled=False)


def answers(*texts: str) -> Callable[[Sequence[str]], str]:
    left = list(texts)
    return lambda words: left.pop(0) if len(left) > 1 else left[0]


def clock(*seconds: float) -> Callable[[], float]:
    left = list(seconds)
    return lambda: left.pop(0)


def test_nvidia_power_is_integrated_and_heat_told_from_idle() -> None:
    run = answers("100.0, 0x0000000000000001\n", "200.0, 0x0000000000000000\n", "300.5, 0x0000000000000044\n")
    source = NvidiaSmi(0, run, clock(0, 2, 4))
    assert source.read() == Reading(joules=300.0, throttled=False)
    assert source.read() == Reading(joules=500.5, throttled=True)
    for text in ("[N/A], [N/A]", "", "no devices were found", "1,2,3"):
        with pytest.raises(Unreadable, match="nvidia-smi says"):
            NvidiaSmi(0, answers(text))


def test_a_mac_that_limits_its_speed() -> None:
    source = Pmset(answers(PMSET.format(limit=100), PMSET.format(limit=100), PMSET.format(limit=62)))
    assert source.read() == Reading(throttled=False)
    assert source.read() == Reading(throttled=True)
    assert Pmset(answers("Note: No thermal warning level has been recorded\n")).read() == Reading(throttled=False)
    with pytest.raises(Unreadable):
        Pmset(answers("usage: pmset"))


def test_a_macs_power() -> None:
    run = answers(POWERMETRICS.format(milliwatts=5000), POWERMETRICS.format(milliwatts=7000))
    assert Powermetrics(run, clock(0, 3)).read() == Reading(joules=18.0)
    with pytest.raises(Unreadable, match="no combined power"):
        Powermetrics(answers("powermetrics must be invoked as the superuser"))


def test_programs_that_are_missing_fail_or_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreadable, match="is not installed"):
        run_program(["no-such-program"])
    with pytest.raises(Unreadable, match="ended with 1"):
        run_program(["false"])
    monkeypatch.setattr("domainclip.devices.power.TIMEOUT_SECONDS", 0.1)
    with pytest.raises(Unreadable, match="TimeoutExpired"):
        run_program(["sleep", "10"])
    sources, reasons = power_sources("cuda")
    assert len(sources) + len(reasons) == 3


class Fake:
    """A source with readings, then it is gone."""

    def __init__(self, *readings: Reading, covers: str = "GPU 0") -> None:
        self.name, self.covers, self.readings = "fake", covers, list(readings)

    def read(self) -> Reading:
        if not self.readings:
            raise Unreadable("the driver is gone")
        return self.readings.pop(0)


def finished(rows: int) -> RunFinished:
    return RunFinished(
        steps=3,
        epochs=1,
        train_loss=1,
        final_loss=1,
        training_time=1,
        samples_per_second=1,
        rows_seen=rows,
        peak_memory_mb=1,
        stopped_early=False,
        best_step=None,
        best_value=None,
    )


def listener_of(sources: Sequence[PowerSource], path: Path) -> tuple[EnergyMeter, EnergyListener, list[Event]]:
    heard: list[Event] = []
    meter = EnergyMeter(sources, [])
    return meter, EnergyListener(meter, heard.append, path), heard


def test_energy_of_a_run_and_of_one_that_goes_on(tmp_path: Path) -> None:
    from test_rules import logged

    path = tmp_path / "metrics.jsonl"
    source = Fake(Reading(joules=99.0), Reading(joules=10.0), Reading(joules=5.0, throttled=True), Reading(joules=1.0))
    meter, listener, heard = listener_of([source], path)
    meter.sample()  # before the training
    listener(RunStarted(folder="", step=0, total_steps=3))
    for step in (1, 2):
        meter.sample()
        listener(logged(step))
    assert heard == [
        Noted(name="energy", step=1, values={"throttled": 0, "energy_j": 10.0}),
        Noted(name="energy", step=2, values={"throttled": 1, "energy_j": 15.0}),
    ]
    meter.sample()
    listener(finished(32))
    assert listener.record == {"joules": 16.0, "joules_per_sample": 0.5, "energy_covers": "GPU 0"}
    path.write_text('{"step": 2, "throttled": 1, "energy_j": 15.0}\n')
    meter, listener, _ = listener_of([Fake(Reading(joules=2.0))], path)
    listener(RunStarted(folder="", step=2, total_steps=3))
    meter.sample()
    listener(finished(34))
    assert listener.record is not None and listener.record["joules"] == 17.0


def test_a_source_that_fails_is_left_out_with_its_reason(tmp_path: Path) -> None:
    meter, listener, _ = listener_of([Fake(Reading(joules=1.0)), Fake(covers="")], tmp_path / "none")
    meter.sample()
    meter.sample()
    assert meter.sources == [] and len(meter.reasons) == 2 and "the driver is gone" in meter.reasons[0]
    assert meter.take() == (1.0, False)
    nothing = EnergyMeter([Fake(Reading(throttled=True), covers="")], [])
    listener = EnergyListener(nothing, lambda event: None, tmp_path / "none")
    listener(RunStarted(folder="", step=0, total_steps=1))
    listener(finished(3))
    assert listener.record is None  # heat alone is no energy


def test_a_source_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    reading = threading.Event()

    class Hanging(Fake):
        def read(self) -> Reading:
            reading.set()
            time.sleep(60)
            return Reading()

    began = time.monotonic()
    with energy_of([Hanging()], [], lambda event: None, tmp_path / "none", every=0.01) as listener:
        assert reading.wait(10)
        listener(RunStarted(folder="", step=0, total_steps=1))
        listener(finished(3))
    assert time.monotonic() - began < 30
