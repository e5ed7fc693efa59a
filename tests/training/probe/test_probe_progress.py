"""A probe that is stopped goes on from what it has saved, and ends as one that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from domainclip.errors import Interrupted
from domainclip.models import make_tiny_clip
from domainclip.signals import StopSignals
from domainclip.training.probe import features, progress
from domainclip.training.probe.progress import ProbeProgress
from probe_cases import fitted, make_probe
from tiny_data import TinyData


class Killed(BaseException):
    pass


class Killing(ProbeProgress):
    """Dies after the ``saves``-th save."""

    saves = 1

    def save(self, name: str, part: dict) -> None:
        super().save(name, part)
        self.saves -= 1
        if not self.saves:
            raise Killed


@pytest.fixture(autouse=True)
def saved_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(features, "SAVE_SECONDS", 0.0)


def probed(data: TinyData, kept: ProbeProgress | None, **values: object) -> tuple[dict, list[torch.Tensor]]:
    encoder = make_tiny_clip(3, attention_dropout=0.1)
    probe = make_probe(encoder, data.pairs(), data.pairs("val"), **values)
    _, choice = fitted(probe, kept)
    return vars(choice), [parameter.detach().clone() for _, parameter in probe.trained_parameters()]


@pytest.mark.parametrize("values", [{}, {"l2sp_strength": 0.1, "distillation_strength": 0.1}])
@pytest.mark.parametrize("saves", [1, 2, 3])
def test_a_probe_killed_again_and_again_ends_alike(
    tiny_data: TinyData, tmp_path: Path, saves: int, values: dict
) -> None:
    expected, weights = probed(tiny_data, None, **values)
    kills = 0
    while True:
        kept = Killing(tmp_path / "probe", "one")
        kept.saves = saves
        torch.manual_seed(kills)
        try:
            outcome, found = probed(tiny_data, kept, **values)
            break
        except Killed:
            kills += 1
            assert kills < 200, "no progress"
    assert kills >= 3
    assert outcome == expected
    assert all(torch.equal(one, other) for one, other in zip(found, weights, strict=True))


def test_a_signal_saves_the_probe_and_stops(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SAVE_SECONDS", 3600.0)
    monkeypatch.setattr(features, "SAVE_SECONDS", 3600.0)
    expected = probed(tiny_data, None)
    stop = StopSignals()
    stop.received = signal.SIGTERM
    with pytest.raises(Interrupted, match="Stopped by SIGTERM in the probe; saved") as stopped:
        probed(tiny_data, ProbeProgress(tmp_path / "probe", "one", stop))
    assert stopped.value.exit_code == 143
    kept = ProbeProgress(tmp_path / "probe", "one")
    assert kept.is_saved
    outcome, weights = probed(tiny_data, kept)
    assert outcome == expected[0]
    assert all(torch.equal(one, other) for one, other in zip(weights, expected[1], strict=True))


def test_damaged_parts_and_those_of_another_probe_are_not_taken_up(tiny_data: TinyData, tmp_path: Path) -> None:
    expected, _ = probed(tiny_data, None)
    kept = Killing(tmp_path / "probe", "one")
    kept.saves = 3
    with pytest.raises(Killed):
        probed(tiny_data, kept)
    assert kept.load("features-0") is not None
    assert ProbeProgress(tmp_path / "probe", "another").load("features-0") is None
    for path in (tmp_path / "probe").glob("*/state.pt"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    again = ProbeProgress(tmp_path / "probe", "one")
    assert again.load("features-0") is None
    assert probed(tiny_data, again)[0] == expected


def test_a_full_disk_ends_no_probe(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    expected, _ = probed(tiny_data, None)
    monkeypatch.setattr(progress, "write_state", full)
    assert probed(tiny_data, ProbeProgress(tmp_path / "probe", "one"))[0] == expected
    assert caplog.text.count("progress cannot be saved") == 1
