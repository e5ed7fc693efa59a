"""The trainer's own step on an accelerator without numbers: no float64, no hidden wait, no mixed devices."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fake_accelerator
from fake_accelerator import FROM_TORCH, SCENARIOS
from mps_ops import kernels

pytestmark = pytest.mark.slow

HONEST = [name for name in SCENARIOS if "planted" not in name]
STEPS = [name for name in HONEST if name != "inference"]
MASKS = "transformers/masking_utils.py"

Found = dict[str, dict[str, dict[str, list[str]]]]


@pytest.fixture(scope="module")
def found() -> Found:
    """All scenarios, in one process of their own: a backend is registered for good."""
    tests = Path(fake_accelerator.__file__).parent
    path = os.pathsep.join([str(tests.parents[1] / "src"), str(tests), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(tests / "fake_accelerator.py"), *SCENARIOS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_this_process_knows_no_accelerator() -> None:
    assert not hasattr(torch, fake_accelerator.NAME)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_runs_whole_on_one_device(name: str, found: Found) -> None:
    for part, findings in found[name].items():
        assert findings["failures"] == [], part
    later = found[name]["later"]["ops"]
    assert any("backward" in op for op in later) and len(later) > 50
    assert ("_fused_adamw_" in later) == (name != "adafactor")


@pytest.mark.parametrize("name", STEPS)
def test_a_step_makes_no_float64(name: str, found: Found) -> None:
    made = [entry for part in found[name].values() for entry in part["float64"]]
    if name == "fp16":
        made = [entry for entry in made if not entry.startswith(FROM_TORCH)]
    assert made == []


def test_torch_itself_spares_mps_the_scaler_s_float64() -> None:
    """What the check of fp16 leaves out is taken another way on ``mps:0``."""
    assert 'device("mps:0")' in inspect.getsource(torch.amp.GradScaler.unscale_)


WAITS: dict[str, dict[str, Callable[[str], bool]]] = {
    # The bias of the first batch is set once, and whether it could be is asked.
    "sigmoid": {"first": lambda entry: "in set_bias" in entry},
    # The temperature follows the loss, so the loss must be known.
    "adaptive": dict.fromkeys(
        ("first", "later"), lambda entry: 'step/train_step.py"' in entry and "in update" in entry
    ),
    # transformers asks whether the padding mask hides anything: sdpa in every tower, and any attention in BERT's.
    "sdpa": dict.fromkeys(("first", "later"), lambda entry: MASKS in entry),
    "mobilenet_bert": dict.fromkeys(("first", "later"), lambda entry: MASKS in entry),
}
"""Where a step is known to wait for the device. Everywhere else it must not."""


@pytest.mark.parametrize("name", STEPS)
def test_a_step_waits_for_the_device_nowhere_else(name: str, found: Found) -> None:
    known = WAITS.get(name, {})
    for part, findings in found[name].items():
        unknown = [entry for entry in findings["syncs"] if part not in known or not known[part](entry)]
        assert unknown == [], part


def test_the_adaptive_schedule_alone_reads_the_loss(found: Found) -> None:
    assert len(found["adaptive"]["later"]["syncs"]) == 1
    assert found["constant"]["later"]["syncs"] == found["cosine"]["later"]["syncs"] == []


def test_the_sigmoid_s_bias_is_asked_for_once(found: Found) -> None:
    assert len(found["sigmoid"]["first"]["syncs"]) == 1
    assert found["sigmoid"]["later"]["syncs"] == []


@pytest.mark.parametrize("name", STEPS)
def test_a_later_step_copies_nothing_to_the_device_but_the_batch(name: str, found: Found) -> None:
    """On MPS such a copy waits for everything queued before it."""
    assert found[name]["later"]["uploads"] == []


def test_inference_waits_only_for_its_embeddings(found: Found) -> None:
    for part, findings in found["inference"].items():
        assert findings["failures"] == findings["float64"] == [], part
        waits = [entry for entry in findings["syncs"] if MASKS not in entry]
        assert len(waits) == 1 and waits[0].startswith("_to_copy to the CPU") and "inference/engine.py" in waits[0]


@pytest.mark.parametrize("name", HONEST)
def test_what_an_accelerator_calls_has_mps_kernels(name: str, found: Found) -> None:
    """The device decides between forms of an operation (foreach on accelerators, for one): those taken here too."""
    called = {op for part in found[name].values() for op in part["ops"]}
    assert {op for op in called if kernels().get(op) is None} == set()


# --- the checker itself ---


@pytest.mark.parametrize(
    ("part", "kind", "op"),
    [
        ("item", "syncs", "_local_scalar_dense"),
        ("bool", "syncs", "_local_scalar_dense"),
        ("nonzero", "syncs", "nonzero"),
        ("mask", "syncs", "index.Tensor"),
        ("to_cpu", "syncs", "_to_copy to the CPU"),
        ("upload", "uploads", "_to_copy"),
        ("float64", "float64", "_to_copy"),
        ("float64_made", "float64", "zeros"),
        ("mixed", "failures", "FakeTensorDeviceMismatchError"),
    ],
)
def test_a_planted_fault_is_found_and_its_place_told(part: str, kind: str, op: str, found: Found) -> None:
    findings = found["planted"][part]
    (entry,) = findings[kind]
    assert entry.startswith(op)
    assert "fake_accelerator.py" in entry
    others = {"syncs", "uploads", "float64"} - {kind}
    assert all(findings[other] == [] for other in others)


def test_what_is_harmless_is_not_reported(found: Found) -> None:
    for part in ("clean", "host_alone"):
        assert {name for name, entries in found["planted"][part].items() if entries} <= {"ops"}


def test_faults_planted_in_an_objective_are_found_in_the_trainer_s_step(found: Found) -> None:
    findings = found["planted in the step"]["later"]
    assert findings["failures"] == []
    for kind, op in (("syncs", "_local_scalar_dense"), ("float64", "_to_copy")):
        assert any(entry.startswith(op) and "in row_loss" in entry for entry in findings[kind]), kind
