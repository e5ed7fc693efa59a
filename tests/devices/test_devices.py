"""The choice of a device, and its reason, on machines that are played."""

from __future__ import annotations

import logging

import pytest
import torch

from domainclip.devices import DeviceManager, platform
from domainclip.errors import ConfigurationError, DeviceError, MPSCompatibilityError
from machines import CPU, CUDA, MPS, Machine


def test_mac_takes_mps(machine: Machine) -> None:
    machine.mac()
    manager = DeviceManager(use_mps=True)
    assert manager.device == MPS
    assert manager.is_apple_silicon
    assert manager.is_mps_available
    assert "Apple M3 Pro" in manager.reason
    assert manager.fallbacks == []


def test_use_mps_false_passes_over_metal(machine: Machine) -> None:
    machine.mac()
    manager = DeviceManager(use_mps=False)
    assert manager.device == CPU
    assert manager.is_mps_available  # it is there, only not wanted
    assert dict(manager.fallbacks) == {"mps": "switched off by use_mps=false", "cuda": "Macs have no CUDA"}


def test_nvidia_is_taken_after_mps(machine: Machine) -> None:
    machine.nvidia()
    manager = DeviceManager()
    assert manager.device == CUDA
    assert "NVIDIA H100" in manager.reason
    assert [name for name, _ in manager.fallbacks] == ["mps"]
    assert not manager.is_apple_silicon


def test_plain_machine_takes_the_cpu_and_says_why(machine: Machine) -> None:
    manager = DeviceManager()
    assert manager.device == CPU
    assert not manager.is_apple_silicon
    assert not manager.is_mps_available
    reasons = dict(manager.fallbacks)
    assert "not a Mac" in reasons["mps"]
    assert "CPU only" in reasons["cuda"]
    assert reasons["cuda"] in manager.reason


def test_driver_without_cuda_build_gets_a_remedy(machine: Machine) -> None:
    machine._set(nvidia_driver_present=True)
    assert "install a CUDA build" in dict(DeviceManager().fallbacks)["cuda"]


def test_rosetta_is_seen_through(machine: Machine) -> None:
    machine.rosetta()
    manager = DeviceManager()
    assert manager.is_apple_silicon  # the hardware is
    assert not manager.is_mps_available  # this process cannot use it
    assert manager.device == CPU
    assert "Rosetta" in manager.fallbacks[0].reason
    assert "arm64 Python" in manager.fallbacks[0].reason


def test_intel_mac_is_not_apple_silicon(machine: Machine) -> None:
    machine.intel_mac()
    manager = DeviceManager()
    assert not manager.is_apple_silicon
    assert "Intel Mac" in manager.fallbacks[0].reason


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"mps_is_built": False}, "without Metal"),
        ({"mps_is_available": False, "macos_version": (12, 1)}, "macOS 12.1"),
        ({"probe": "Metal device out of memory"}, "Metal device out of memory"),
    ],
)
def test_mac_without_usable_metal_falls_back_and_warns(
    machine: Machine, caplog: pytest.LogCaptureFixture, answers: dict[str, object], expected: str
) -> None:
    machine.mac(**answers)
    with caplog.at_level(logging.WARNING, logger="domainclip"):
        manager = DeviceManager()
    assert manager.device == CPU
    assert expected in manager.fallbacks[0].reason
    assert expected in caplog.text


def test_broken_nvidia_falls_back(machine: Machine) -> None:
    machine.nvidia(probe="no kernel image is available")
    manager = DeviceManager()
    assert manager.device == CPU
    assert "no kernel image" in dict(manager.fallbacks)["cuda"]


def test_asked_for_and_absent_is_an_error(machine: Machine) -> None:
    with pytest.raises(MPSCompatibilityError, match=r"not a Mac.*device='cpu'"):
        DeviceManager(device="mps")
    with pytest.raises(DeviceError, match=r"CPU only.*device='cpu'"):
        DeviceManager(device="cuda")
    machine.nvidia(count=1)
    assert DeviceManager(device="cuda:0").device == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="there is no cuda:1: 1 found"):
        DeviceManager(device="cuda:1")
    assert DeviceManager(device="cpu").device == CPU


def test_nonsense_devices_are_configuration_errors(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match="Invalid device 'gpu'"):
        DeviceManager(device="gpu")
    machine.mac()
    with pytest.raises(ConfigurationError, match="contradicts"):
        DeviceManager(use_mps=False, device="mps")


def test_chip_generations() -> None:
    names = {"Apple M1": 1, "Apple M2 Ultra": 2, "Apple M3 Pro": 3, "Apple M10 Max": 10}
    for name, generation in names.items():
        assert platform.apple_chip_generation(name) == generation
    for name in ("Apple processor", "Intel(R) Core(TM) i7", "", None):
        assert platform.apple_chip_generation(name) is None


def test_sysctl_is_never_run_off_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("sysctl was run")

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform.subprocess, "run", forbidden)
    assert platform.chip_name() is None
    assert not platform.is_apple_silicon()


def test_sysctl_reads_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer:
        def __init__(self, returncode: int, stdout: str) -> None:
            self.returncode, self.stdout = returncode, stdout

    answers = {"machdep.cpu.brand_string": Answer(0, "Apple M2\n")}
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform.subprocess, "run", lambda cmd, **_: answers.get(cmd[-1], Answer(1, "")))
    assert platform.chip_name() == "Apple M2"
    assert platform.sysctl("sysctl.proc_translated") is None


def test_probe_reports_the_error_of_a_missing_device() -> None:
    assert platform.probe(CPU) is None
    if not torch.backends.mps.is_available():
        assert platform.probe(MPS)


def test_log_names_device_reason_and_memory(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="domainclip"):
        DeviceManager().log_device_info()
    assert "Device: cpu" in caplog.text
    assert "Not using mps: this is Linux" in caplog.text
    assert "GB available" in caplog.text
