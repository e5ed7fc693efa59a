"""Each rule is made to hold, and nearly made to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domainclip.events import (
    CheckpointSaved,
    Event,
    Milestone,
    Noted,
    PhaseProgress,
    RunStarted,
    StepLogged,
)
from domainclip.pace import Pace
from domainclip.tracking.milestones import health_rules
from domainclip.tracking.milestones.rule import RunFacts
from domainclip.tracking.milestones.watch import RULES, MilestoneWatch, sentence_of
from run_events import initial, logged, validated

FACTS = RunFacts(folder=Path(), warmup_steps=2, largest_scale=100.0)


def reached(events: Sequence[Event], facts: RunFacts = FACTS) -> list[Milestone]:
    found: list[Event] = []
    watch = MilestoneWatch(facts, found.append)
    for event in events:
        watch(event)
    assert found == watch.reached
    return watch.reached


def names(events: Sequence[Event], facts: RunFacts = FACTS) -> list[str]:
    return [each.name for each in reached(events, facts)]


def test_better_than_zero_shot_by_more_than_the_error() -> None:
    assert names([initial(0.5), validated(10, 0.509)]) == []
    assert names([initial(0.5), validated(10, 0.52), validated(20, 0.525)]) == ["better_than_zero_shot"]
    assert names([initial(0.5, error=0.1), validated(10, 0.55)]) == []
    assert names([initial(3.0, better=False), validated(10, 3.5, better=False)]) == []
    (found,) = reached([initial(3.0, better=False), validated(10, 2.5, better=False)])
    assert found.step == 10 and found.evidence["initial"] == 3.0 and "0.5" not in found.rule


def test_the_probe_is_beaten_by_later_weights_alone() -> None:
    assert names([validated(0, 0.8), validated(10, 0.805)]) == []
    assert "beats_linear_probe" not in names([validated(10, 0.8), validated(20, 0.9)])  # there was no probe
    assert "beats_linear_probe" in names([validated(0, 0.8), validated(10, 0.82)])


def test_a_new_best_each_time_it_is_more_than_chance() -> None:
    found = reached([validated(step, value) for step, value in ((5, 0.5), (10, 0.505), (15, 0.52), (20, 0.55))])
    assert [(each.name, each.step) for each in found] == [("new_best", 15), ("new_best", 20)]
    assert found[0].evidence["before"] == 0.5


def test_a_plateau_after_five_validations_without_a_gain() -> None:
    flat = [validated(step, 0.5 + 0.001 * (step % 3)) for step in range(1, 20)]
    assert names(flat[:5]) == []
    assert names(flat[:6]) == ["plateau"] == names(flat)
    assert "plateau" not in names([validated(step, 0.02 * step) for step in range(1, 20)])


def test_collapse_by_rank_or_by_cosine() -> None:
    """A mean cosine of c is a spread of √((1 − c)(n − 1)/n)."""

    def at(step: int, cosine: float, rank: float = 20.0) -> StepLogged:
        spread = math.sqrt((1 - cosine) * 31 / 32)
        return logged(step, embedding_spread=spread, effective_rank=rank)

    healthy = [at(step, 0.5) for step in range(1, 10)]
    assert names(healthy) == []
    (found,) = reached([healthy[0], *(at(step, 0.97) for step in range(3, 9))])
    assert (found.name, found.step, found.level) == ("collapse", 5, "warning")
    assert found.evidence["mean_cosine"] == pytest.approx(0.97) and found.advice
    assert names([healthy[0], *(at(step, 0.5, rank=1.9) for step in range(3, 9))]) == ["collapse"]
    assert names([healthy[0], *(at(step, 0.94) for step in range(3, 9))]) == []
    # Two in a row are not three.
    assert names([healthy[0], *(at(step, 0.97 if step % 3 else 0.5) for step in range(3, 30))]) == []
    # Images of a narrow domain begin alike; they have collapsed when a fifth of what was left is left.
    narrow = [at(1, 0.96)]
    assert names([*narrow, *(at(step, 0.98) for step in range(3, 9))]) == []
    assert names([*narrow, *(at(step, 0.995) for step in range(3, 9))]) == ["collapse"]
    assert names([at(step, 1.0, rank=0.0) for step in range(1, 9)]) == ["collapse"]  # from the first step on
    # Nothing is said within the warm-up.
    facts = RunFacts(folder=Path(), warmup_steps=50)
    assert names([healthy[0], *(at(step, 0.999) for step in range(3, 50))], facts) == []


def test_a_trained_scale_at_its_ends() -> None:
    clamped = [logged(step, logit_scale=100.0) for step in range(1, 12)]
    lost = [logged(step, logit_scale=0.5) for step in range(1, 12)]
    assert names(clamped) == ["temperature_clamped"] and names(lost) == ["temperature_lost"]
    assert reached(clamped)[0].step == 5
    fixed = RunFacts(folder=Path(), largest_scale=100.0, scale_trained=False)
    assert names(clamped, fixed) == [] == names(lost, fixed)
    siglip = RunFacts(folder=Path(), largest_scale=None)
    assert names(clamped, siglip) == []
    assert names([logged(step, logit_scale=99.0) for step in range(1, 12)]) == []


def test_a_loss_at_chance_or_above_it() -> None:
    def at(loss: float, **values: float) -> list[str]:
        return names([logged(step, metrics={"loss": loss, "target_entropy": 0.0, **values}) for step in range(1, 12)])

    assert at(math.log(32)) == ["loss_at_chance"] == at(2 * math.log(32))
    assert at(0.95 * math.log(32)) == []
    assert at(math.log(32), target_entropy=0.95 * math.log(32)) == []
    # An objective that is no cross-entropy has other units.
    assert names([logged(step, metrics={"loss": math.log(32)}) for step in range(1, 12)]) == []


def test_waiting_for_data_after_the_first_epoch() -> None:
    waiting = {"data": 0.5, "towers": 1.0}
    assert names([logged(step, seconds=waiting) for step in range(1, 8)]) == ["data_bound"]
    assert names([logged(step, seconds=waiting, epoch=0.9) for step in range(1, 20)]) == []
    assert names([logged(step, seconds={"data": 0.4, "step": 1.0}) for step in range(1, 20)]) == []
    assert names([logged(step, seconds={}) for step in range(1, 20)]) == []


def test_forgetting_beyond_the_limit() -> None:
    start = Noted(name="references", step=0, values={"val_reference_mean": 0.6, "val_reference_a": 0.6})
    assert names([start, *(validated(step, 0.5, reference_mean=0.575) for step in (5, 9))]) == []
    once = [validated(5, 0.5, reference_mean=0.56), validated(9, 0.5, reference_mean=0.58)]
    assert names([start, *once, *once]) == []
    (found,) = reached([start, validated(5, 0.5, reference_mean=0.56), validated(9, 0.4, reference_mean=0.5)])
    assert (found.name, found.step, found.evidence["max_forgetting"]) == ("forgetting", 9, 0.03)
    assert names([validated(5, 0.5, reference_mean=0.1)]) == []


def test_a_disk_with_less_than_two_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-5"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.pt").write_bytes(bytes(1000))
    facts = RunFacts(folder=tmp_path)
    event = CheckpointSaved(step=5, path=str(checkpoint))
    free = [2000]
    usage = SimpleNamespace(disk_usage=lambda folder: shutil._ntuple_diskusage(10**6, 0, free[0]))  # type: ignore[attr-defined]
    monkeypatch.setattr(health_rules, "shutil", usage)
    assert names([event], facts) == []
    free[0] = 1999
    (found,) = reached([event], facts)
    assert found.evidence == {"free_bytes": 1999, "checkpoint_bytes": 1000}


def test_an_end_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(health_rules, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Pace.__init__, "__defaults__", (0, lambda: now[0]))

    def run(seconds_of: Any) -> list[Milestone]:
        watch = MilestoneWatch(FACTS, lambda event: None)
        watch(RunStarted(folder="", step=0, total_steps=2000))
        for step in range(1, 2001):
            now[0] += seconds_of(step)
            watch(PhaseProgress(name="training", done=step, total=2000))
        return watch.reached

    assert run(lambda step: 1.0) == []
    assert run(lambda step: 1.0 + 0.1 * (step % 2)) == []
    assert run(lambda step: 0.01 * (1 + (step > 500))) == []  # half a minute in all
    slower = run(lambda step: 1.0 + (step > 500))
    assert slower and slower[0].name == "eta_moved" and "later" in slower[0].text and slower[0].step > 500
    faster = run(lambda step: 1.0 - 0.5 * (step > 500))
    assert faster and "earlier" in faster[0].text


def test_a_machine_that_throttles() -> None:
    def noted(*throttled: int) -> list[Event]:
        return [Noted(name="energy", step=step, values={"throttled": each}) for step, each in enumerate(throttled)]

    assert names(noted(1, 1, 0, 1, 1)) == []
    assert names(noted(0, 1, 1, 1)) == ["throttled"]


def test_every_rule_says_what_it_is() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.rule.endswith(".") and (rule.advice or rule.level == "info"), rule.name
        assert not rule.advice.endswith(".")


def test_nothing_is_said_twice_or_lost_over_a_resumption() -> None:
    events: list[Event] = [
        initial(0.5),
        validated(0, 0.6),
        *(logged(step, logit_scale=100.0) for step in range(1, 5)),
        validated(5, 0.7),
        *(logged(step, logit_scale=100.0) for step in range(6, 12)),
        *(validated(step, 0.7) for step in range(12, 20)),
    ]
    whole = reached(events)
    assert {each.name for each in whole} == {
        *("better_than_zero_shot", "beats_linear_probe", "new_best", "temperature_clamped", "plateau")
    }
    for cut in range(len(events) + 1):
        first = MilestoneWatch(FACTS, lambda event: None)
        for event in events[:cut]:
            first(event)
        state = first.state_dict()
        second = MilestoneWatch(FACTS, lambda event: None)
        second.load_state_dict(state)
        for event in events[cut:]:
            second(event)
        assert second.reached == whole
        assert second.warnings == [sentence_of(each) for each in whole if each.level == "warning"]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
EVENTS = st.one_of(
    st.builds(
        logged,
        st.integers(1, 1000),
        batch_size=st.integers(0, 100),
        metrics=st.dictionaries(st.sampled_from(["loss", "target_entropy"]), NUMBERS),
        logit_scale=NUMBERS,
        embedding_spread=NUMBERS,
        effective_rank=NUMBERS,
        seconds=st.dictionaries(st.sampled_from(["data", "towers"]), NUMBERS),
        epoch=NUMBERS,
    ),
    st.builds(validated, st.integers(0, 1000), NUMBERS, NUMBERS, st.booleans(), reference_mean=NUMBERS),
    st.builds(initial, NUMBERS, NUMBERS, st.booleans()),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(EVENTS, max_size=30))
def test_no_course_of_events_breaks_the_watch(events: list[Event]) -> None:
    for each in reached(events):
        assert each.text and each.rule


def test_the_documents_have_all_rules() -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "milestones.md").read_text()
    for rule in RULES:
        again = " ↻" if rule.again else ""
        assert f"| `{rule.name}`{again} | {rule.level} | {rule.rule} | {rule.advice} |" in page
