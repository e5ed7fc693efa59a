"""Machines played by replacing ``devices.platform``: Macs, Rosetta, NVIDIA, plain CPUs."""

from __future__ import annotations

import psutil
import pytest
import torch

from domainclip.devices import platform

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
GB = 2**30


class Machine:
    """Replaces the answers of ``platform``; unless told otherwise, a Linux box with a CPU build of torch."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.linux()

    def _set(self, **answers: object) -> None:
        for name, answer in answers.items():
            self.patch.setattr(platform, name, lambda *_, answer=answer: answer)

    def linux(self) -> None:
        self._set(system="Linux", machine="x86_64", macos_version=None, sysctl=None, probe=None)
        self._set(mps_is_built=False, mps_is_available=False, cuda_is_built=False, cuda_is_available=False)
        self._set(nvidia_driver_present=False, cuda_device_count=0)

    def nvidia(self, capability: tuple[int, int] = (9, 0), count: int = 1, **answers: object) -> None:
        self._set(cuda_is_built=True, cuda_is_available=True, cuda_device_count=count, cuda_name="NVIDIA H100")
        self._set(cuda_capability=capability, nvidia_driver_present=True, **answers)

    def mac(self, chip: str = "Apple M3 Pro", version: tuple[int, ...] = (15, 1), **answers: object) -> None:
        kernel = {"machdep.cpu.brand_string": chip}
        self._set(system="Darwin", machine="arm64", macos_version=version, mps_is_built=True, mps_is_available=True)
        self.patch.setattr(platform, "sysctl", kernel.get)
        self._set(**answers)

    def rosetta(self) -> None:
        kernel = {
            "machdep.cpu.brand_string": "VirtualApple @ 2.50GHz processor",
            "sysctl.proc_translated": "1",
        }
        self.mac(machine="x86_64", mps_is_built=False, mps_is_available=False)
        self.patch.setattr(platform, "sysctl", kernel.get)

    def intel_mac(self) -> None:
        self.mac(chip="Intel(R) Core(TM) i7", machine="x86_64", mps_is_built=False, mps_is_available=False)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def metal_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Metal's memory calls, which raise without a Mac: 1 GB in tensors, 3 GB held, 12 GB recommended."""
    calls: dict[str, list[float]] = {"fraction": []}
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 1 * GB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GB)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GB)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", calls["fraction"].append)
    return calls


def host_memory(monkeypatch: pytest.MonkeyPatch, total: int, available: int) -> None:
    values = type("Memory", (), {"total": total, "available": available})()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: values)
