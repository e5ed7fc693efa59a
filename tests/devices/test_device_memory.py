"""Memory readings of each device, containers, and the batch size that follows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from domainclip.devices import DeviceManager, MemoryManager, cgroup, memory
from machines import CPU, GB, Machine, host_memory


def test_cpu_memory_agrees_with_psutil(machine: Machine) -> None:
    info = DeviceManager().get_memory_info()
    assert 0 < info["available_gb"] <= info["total_gb"] <= psutil.virtual_memory().total / GB + 1e-9
    assert info["used_gb"] == pytest.approx(info["total_gb"] - info["available_gb"])
    assert info["rss_gb"] == pytest.approx(psutil.Process().memory_info().rss / GB, rel=0.1)


def test_unified_memory_has_two_ceilings(
    machine: Machine, metal_memory: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mac()
    manager = DeviceManager()
    host_memory(monkeypatch, 16 * GB, 14 * GB)
    info = manager.get_memory_info()
    assert info["unified"] is True
    assert (info["mps_current_gb"], info["mps_driver_gb"], info["mps_recommended_gb"]) == (1.0, 3.0, 12.0)
    assert info["total_gb"] == 16.0
    assert info["available_gb"] == 11.0  # Metal's 12 less the 1 in use, not macOS's 14
    host_memory(monkeypatch, 16 * GB, 4 * GB)
    assert manager.get_memory_info()["available_gb"] == 6.0  # macOS's 4 and the 2 that the allocator caches


def test_cuda_memory_counts_the_allocators_cache(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine.nvidia()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10 * GB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 25 * GB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 20 * GB)
    info = DeviceManager().get_memory_info()
    assert info["total_gb"] == 80.0
    assert info["available_gb"] == 65.0  # 50 free and 15 reserved but unused
    assert info["peak_allocated_gb"] == 20.0


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


def test_cgroup_v2_takes_the_tightest_group(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("0::/outer/inner\n")
    write(root / "outer", memory_max=4 * GB, memory_current=3 * GB, cpu_max="150000 100000")
    write(root / "outer" / "inner", memory_max="max", memory_current=GB, cpu_max="max 100000")
    (root / "outer" / "memory.stat").write_text(f"anon {GB}\ninactive_file {GB}\n")
    assert cgroup.memory_limit(root, membership) == cgroup.MemoryLimit(limit=4 * GB, used=2 * GB)
    assert cgroup.cpu_quota(root, membership) == 1.5


def test_cgroup_v1_and_no_limit(tmp_path: Path) -> None:
    root, membership = tmp_path / "cgroup", tmp_path / "membership"
    membership.write_text("4:memory:/job\n3:cpu,cpuacct:/job\n0::/\n")
    write(root / "memory" / "job", memory_limit_in_bytes=2 * GB, memory_usage_in_bytes=GB)
    write(root / "cpu" / "job", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
    assert cgroup.memory_limit(root, membership) == cgroup.MemoryLimit(2 * GB, GB)
    assert cgroup.cpu_quota(root, membership) is None
    write(root / "memory" / "job", memory_limit_in_bytes=9223372036854771712)
    write(root / "cpu" / "job", cpu_cfs_quota_us=200000)
    assert cgroup.memory_limit(root, membership) is None
    assert cgroup.cpu_quota(root, membership) == 2.0
    assert cgroup.memory_limit(root, tmp_path / "absent") is None


def test_container_limit_replaces_the_hosts_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    host_memory(monkeypatch, 64 * GB, 60 * GB)
    monkeypatch.setattr(cgroup, "memory_limit", lambda: cgroup.MemoryLimit(8 * GB, 3 * GB))
    info = MemoryManager("cpu").memory_info
    assert (info["total_gb"], info["available_gb"], info["used_gb"]) == (8.0, 5.0, 3.0)
    assert (info["cgroup_limit_gb"], info["host_total_gb"]) == (8.0, 64.0)


def test_address_space_limit_replaces_the_hosts_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)
    monkeypatch.setattr(memory, "address_space_limit", lambda: None)
    host_memory(monkeypatch, 512 * GB, 500 * GB)
    assert memory.read_memory(CPU)["address_space_limit_gb"] is None
    assert memory.read_memory(CPU)["available_gb"] == 500.0
    mapped = psutil.Process().memory_info().vms
    monkeypatch.setattr(memory, "address_space_limit", lambda: mapped + 2 * GB)
    info = memory.read_memory(CPU)
    assert info["address_space_limit_gb"] == info["total_gb"] == pytest.approx(mapped / GB + 2)
    assert info["available_gb"] == pytest.approx(2, abs=0.2)  # what was mapped between the two readings counts
    monkeypatch.setattr(cgroup, "memory_limit", lambda: cgroup.MemoryLimit(8 * GB, 7 * GB))
    assert memory.read_memory(CPU)["available_gb"] == 1.0  # the tighter one holds
    monkeypatch.setattr(memory, "address_space_limit", lambda: mapped // 2)
    assert memory.read_memory(CPU)["available_gb"] == 0.0


_LIMITED = """
import json, resource
import psutil, torch
from domainclip.devices import memory

cpu, MB = torch.device("cpu"), 2**20
torch.empty(64 * MB, dtype=torch.uint8)  # the allocator's own first needs
limit = psutil.Process().memory_info().vms + 256 * MB
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
info = memory.read_memory(cpu)

def fits(size):
    try:
        return bool(len(torch.empty(size * MB, dtype=torch.uint8)))
    except RuntimeError as error:
        return str(error)

room = int(info["available_gb"] * 1024)
print(json.dumps([limit, info, fits(room // 2), fits(room + 64)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps to a limit on address space")
def test_address_space_limit_is_what_the_system_keeps_to() -> None:
    done = subprocess.run([sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    limit, info, half, more = json.loads(done.stdout)
    assert info["address_space_limit_gb"] == info["total_gb"] == pytest.approx(limit / GB)
    assert info["available_gb"] == pytest.approx(0.25, abs=0.06)
    assert half is True
    assert "can't allocate memory" in more


def test_optimal_batch_size_follows_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cgroup, "memory_limit", lambda: None)

    def batch(available: float, **options: int) -> int:
        host_memory(monkeypatch, 512 * GB, int(available * GB))
        return MemoryManager(CPU, **options).optimal_batch_size

    # By hand: 8 GB x 0.8 - 151277313 x 16 B = 4.146 GB, / 72 MiB = 58 pairs, so 32.
    assert batch(8) == 32
    assert batch(400) == 256
    # 1 GB x 0.8 / 1 MiB = 819 pairs without the ceiling; a model of 45 million weights leaves 132.
    assert batch(1, parameters=45_000_000, activation_bytes_per_pair=2**20) == 128
    assert caplog.text == ""
    assert batch(1) == 1
    assert "batch size 1 may run out of memory" in caplog.text
