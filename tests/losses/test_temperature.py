"""Temperature schedules against their equations, worked out here from scratch."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from domainclip.config import LossSettings
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.losses.temperature import SCHEDULES, TemperatureScheduler

PURE = [name for name in SCHEDULES if name != "adaptive"]


def make(kind: str, **values: float) -> TemperatureScheduler:
    return TemperatureScheduler(schedule_type=kind, **{"warmup_steps": 100, "total_steps": 1000, **values})  # type: ignore[arg-type]


def path(scheduler: TemperatureScheduler, losses: list[float]) -> list[float]:
    return [scheduler.step(loss=loss) for loss in losses]


def test_the_schedules_are_those_of_the_recipe() -> None:
    assert set(SCHEDULES) == {"constant", "warmup", "cosine", "exponential", "adaptive"}
    assert TemperatureScheduler().schedule_type == "warmup"


@pytest.mark.parametrize(
    ("kind", "position", "expected"),
    [
        ("constant", 700, 0.07),
        ("warmup", 50, 0.085),  # half-way from 0.07 to 0.1
        ("warmup", 100, 0.1),
        ("warmup", 550, 0.055),  # half-way from 0.1 to 0.01
        ("warmup", 325, 0.01 + 0.09 * (1 + math.sqrt(0.5)) / 2),  # a quarter: cos 45°
        ("warmup", 1000, 0.01),
        ("warmup", 5000, 0.01),
        ("cosine", 100, 0.07),  # waits for its warmup
        ("cosine", 550, 0.04),  # half-way of the 900 steps after it
        ("cosine", 325, 0.01 + 0.06 * (1 + math.sqrt(0.5)) / 2),
        ("cosine", 1000, 0.01),
        ("exponential", 100, 0.07),
        ("exponential", 109, 0.07 * 0.95),  # one hundredth of the 900 steps after the warmup
        ("exponential", 118, 0.07 * 0.9025),
        ("exponential", 104.5, 0.07 * math.sqrt(0.95)),
        ("exponential", 1000, 0.01),  # 0.07 · 0.95^100 = 0.0004 is below the floor
    ],
)
def test_closed_form_values(kind: str, position: int, expected: float) -> None:
    assert make(kind).step(position) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "position", "expected"),
    [
        ("cosine", 500, 0.04),
        ("cosine", 1000, 0.01),
        ("exponential", 10, 0.07 * 0.95),
        ("warmup", 500, 0.04),  # without a rise it falls from where it begins
        ("warmup", 1, 0.01 + 0.06 * (1 + math.cos(math.pi / 1000)) / 2),
    ],
)
def test_without_a_warmup_they_begin_at_once(kind: str, position: int, expected: float) -> None:
    assert make(kind, warmup_steps=0).step(0) == 0.07
    assert make(kind, warmup_steps=0).step(position) == pytest.approx(expected, rel=1e-12)


def test_the_settings_are_printed() -> None:
    assert repr(make("cosine")) == (
        "TemperatureScheduler(initial_temp=0.07, min_temp=0.01, max_temp=0.1, warmup_steps=100, total_steps=1000, "
        "schedule_type='cosine', decay_rate=0.95)"
    )


@hypothesis_settings(deadline=None)
@given(
    kind=st.sampled_from(SCHEDULES),
    numbers=st.lists(st.floats(1e-4, 10), min_size=3, max_size=3).map(sorted),
    total=st.integers(1, 5000),
    warmup_fraction=st.floats(0, 1),
    decay=st.floats(0.01, 0.999),
    positions=st.lists(st.integers(0, 6000), max_size=20),
    loss=st.floats(-10, 1e6),
)
def test_bounds_start_and_purity(
    kind: str, numbers: list[float], total: int, warmup_fraction: float, decay: float, positions: list[int], loss: float
) -> None:
    low, first, high = numbers
    warmup = int(total * warmup_fraction)

    def fresh() -> TemperatureScheduler:
        return TemperatureScheduler(first, low, high, warmup, total, kind, decay)

    scheduler = fresh()
    assert scheduler.get_temperature() == first
    if kind != "adaptive":
        assert scheduler.step(0) == first
    for position in positions:
        value = scheduler.step(position, loss=loss)
        assert low <= value <= high
        assert value == scheduler.get_temperature()
        if kind != "adaptive":
            assert value == fresh().step(position)
    scheduler.reset()
    assert scheduler.get_temperature() == first
    if kind in ("warmup", "cosine"):
        assert scheduler.step(total) == pytest.approx(low if warmup < total else high if kind == "warmup" else first)


@pytest.mark.parametrize("kind", PURE)
def test_steps_without_a_number_go_one_further(kind: str) -> None:
    walked, jumped = make(kind), make(kind)
    walked.step(300)
    for position in range(301, 360):
        assert walked.step() == jumped.step(position)
    walked.reset()
    assert walked.step() == jumped.step(1)


def test_directions() -> None:
    for kind in ("cosine", "exponential"):
        values = np.array([make(kind).step(k) for k in range(1001)])
        assert (np.diff(values) <= 0).all()
        assert values[-1] == pytest.approx(0.01)
    values = np.array([make("warmup").step(k) for k in range(1001)])
    assert (np.diff(values[:101]) > 0).all()
    assert (np.diff(values[100:]) < 0).all()
    assert {make("constant").step(k) for k in range(1001)} == {0.07}


def adaptive_by_hand(losses: list[float], start: float, low: float, high: float, decay: float) -> list[float]:
    """The docstring's rule with the plain weighted mean over a list, no running sums."""
    temperature, since, reference, clear, found = start, [], None, [], []
    for loss in losses:
        since = [*since, loss]
        mean = float(np.average(since, weights=0.95 ** np.arange(len(since))[::-1]))
        if reference is None:
            reference = mean if len(since) == 20 else None
        else:
            clear.append((mean > reference + 0.05 * abs(reference)) - int(mean < reference - 0.05 * abs(reference)))
            if clear[-20:] in ([1] * 20, [-1] * 20):
                temperature = min(high, max(low, temperature / decay if clear[-1] > 0 else temperature * decay))
                since, reference, clear = [], None, []
        found.append(temperature)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_adaptive_follows_its_rule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    level = np.concatenate([np.geomspace(4, 0.5, 400), np.linspace(0.5, 3, 300), np.full(100, 3.0)])
    losses = list(level * (1 + 0.1 * rng.standard_normal(len(level))))
    found = path(make("adaptive", min_temp=0.05), losses)
    assert found == pytest.approx(adaptive_by_hand(losses, 0.07, 0.05, 0.1, 0.95), rel=1e-12)
    assert min(found) == 0.05  # reached the floor while the loss fell
    assert found[-1] > 0.05  # and came up again


def test_adaptive_sharpens_when_the_loss_falls_and_softens_when_it_rises() -> None:
    falling = path(make("adaptive"), list(np.geomspace(4, 1, 500)))
    assert falling[-1] < 0.07
    assert (np.diff(falling) <= 0).all()
    changes = sorted(set(falling), reverse=True)
    assert changes == pytest.approx([0.07 * 0.95**n for n in range(len(changes))])
    rising = path(make("adaptive"), list(np.geomspace(1, 4, 500)))
    assert rising[-1] == 0.1
    assert (np.diff(rising) >= 0).all()


def test_noise_does_not_move_adaptive() -> None:
    for seed in range(5):
        losses = 2 * (1 + 0.05 * np.random.default_rng(seed).standard_normal(2000))
        assert set(path(make("adaptive"), list(losses))) == {0.07}


def test_a_loss_that_is_no_number_is_as_if_it_had_not_been() -> None:
    losses = list(np.geomspace(4, 1, 200))
    plain, disturbed = make("adaptive"), make("adaptive")
    for loss in losses:
        expected = plain.step(loss=loss)
        assert disturbed.step(loss=loss) == expected
        for bad in (math.nan, math.inf, -math.inf, None):
            assert disturbed.step(loss=bad) == expected
    assert plain.get_temperature() < 0.07


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_saved_state_goes_on_exactly(kind: str) -> None:
    rng = np.random.default_rng(0)
    losses = list(np.geomspace(4, 0.5, 400) * (1 + 0.1 * rng.standard_normal(400)))
    for stop in (0, 7, 150, 333):
        first = make(kind)
        path(first, losses[:stop])
        second = make(kind)
        path(second, [100.0] * 77)  # whatever it had seen before is gone
        second.load_state(json.loads(json.dumps(first.get_state())))
        assert second.get_temperature() == first.get_temperature()
        assert path(second, losses[stop:]) == path(first, losses[stop:])
        assert second.get_state() == first.get_state()


def test_a_state_that_does_not_fit_is_refused() -> None:
    state = make("adaptive").get_state()
    with pytest.raises(CheckpointError, match=r"'adaptive' and the recipe's is 'cosine'"):
        make("cosine").load_state(state)
    with pytest.raises(CheckpointError, match="lacks position"):
        make("adaptive").load_state({key: value for key, value in state.items() if key != "position"})
    with pytest.raises(CheckpointError, match=r"0\.07 is outside"):
        make("adaptive", initial_temp=0.03, max_temp=0.05).load_state(state)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"initial_temp": 0.0}, r"^Temperature must be positive \(initial_temp=0.0\)"),
        ({"initial_temp": math.nan}, r"^Temperature must be positive"),
        ({"min_temp": -0.1}, r"^Temperature must be positive \(min_temp=-0.1\)"),
        ({"max_temp": math.inf}, r"^Temperature must be positive"),
        ({"min_temp": 0.2}, "min_temp=0.2 is above max_temp=0.1"),
        ({"initial_temp": 0.5}, "initial_temp=0.5 is outside min_temp=0.01 … max_temp=0.1"),
        ({"initial_temp": 0.001}, "initial_temp=0.001 is outside"),
        ({"schedule_type": "cosin"}, r"^Invalid temperature schedule 'cosin'\. Did you mean 'cosine'\?.*adaptive"),
        ({"warmup_steps": -1}, "warmup_steps must be zero or more"),
        ({"total_steps": -5}, "total_steps must be positive"),
        ({"warmup_steps": 200, "total_steps": 100}, "warmup_steps=200 is more than total_steps=100"),
        ({"decay_rate": 1.0}, "decay_rate must be above 0 and below 1"),
        ({"decay_rate": 0.0}, "decay_rate must be"),
    ],
)
def test_wrong_values_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TemperatureScheduler(**values)


def test_other_errors() -> None:
    with pytest.raises(ValueError, match="step must be zero or more"):
        make("cosine").step(-1)
    assert TemperatureScheduler().warmup_steps == 1000
    assert TemperatureScheduler(total_steps=100, schedule_type="cosine").warmup_steps == 10  # not longer than it lasts


def test_from_the_recipe() -> None:
    settings = LossSettings(
        temperature_schedule_type="warmup", min_temp=0.02, max_temp=0.2, temp_decay_rate=0.9, temp_warmup_steps=30
    )
    built = TemperatureScheduler.from_settings(settings, 0.05, 300)
    by_hand = TemperatureScheduler(0.05, 0.02, 0.2, 30, 300, "warmup", 0.9)
    assert vars(built) == vars(by_hand)
    for total, warmup in ((300, 30), (5, 1), (1, 1)):
        assert TemperatureScheduler.from_settings(LossSettings(), 0.07, total).warmup_steps == warmup
    at_once = LossSettings(temperature_schedule_type="cosine")
    assert TemperatureScheduler.from_settings(at_once, 0.07, 300).warmup_steps == 0
    with pytest.raises(ConfigurationError, match=r"initial_temp=0\.3 is outside"):
        TemperatureScheduler.from_settings(settings, 0.3, 300)
    # A scale of 100 that went through 16-bit weights.
    kept = math.exp(-float(np.float16(math.log(100))))
    assert kept < 0.01
    assert TemperatureScheduler.from_settings(LossSettings(), kept, 300).get_temperature() == 0.01
