"""Precision policy, and settings of torch that are changed for a device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from domainclip.devices import DeviceManager, cgroup, choose_precision, optimization, platform
from domainclip.devices.precision import supported_precisions
from domainclip.errors import ConfigurationError
from machines import CPU, CUDA, MPS, Machine


@pytest.mark.parametrize(
    ("capability", "name", "scaler"),
    [((8, 0), "bf16", False), ((9, 0), "bf16", False), ((7, 5), "fp16", True)],
)
def test_cuda_precision(machine: Machine, capability: tuple[int, int], name: str, scaler: bool) -> None:
    machine.nvidia(capability)
    decision = choose_precision(CUDA)
    assert (decision.name, decision.use_grad_scaler) == (name, scaler)
    assert f"{capability[0]}.{capability[1]}" in decision.reason


@pytest.mark.parametrize(
    ("chip", "version", "name", "because"),
    [
        ("Apple M1", (15, 0), "fp32", "emulates"),
        ("Apple M2 Ultra", (15, 0), "fp32", "emulates"),
        ("Apple M3 Pro", (14, 0), "bf16", "computes in bfloat16"),
        ("Apple M4", (13, 6), "fp32", "macOS 14"),
        ("Apple processor", (15, 0), "fp32", "unknown chip"),
    ],
)
def test_mps_precision(machine: Machine, chip: str, version: tuple[int, ...], name: str, because: str) -> None:
    machine.mac(chip, version)
    decision = choose_precision(MPS)
    assert decision.name == name
    assert because in decision.reason


def test_mps_precision_asked_for(machine: Machine) -> None:
    machine.mac("Apple M1", (14, 0))
    assert "emulates" in choose_precision(MPS, "bf16").reason
    fp16 = choose_precision(MPS, "fp16")
    assert (fp16.autocast_dtype, fp16.use_grad_scaler) == (torch.float16, True)
    machine.mac("Apple M1", (13, 6))
    with pytest.raises(ConfigurationError, match=r"needs macOS 14, this is 13\.6"):
        choose_precision(MPS, "bf16")
    assert supported_precisions(MPS) == ("fp32", "fp16")


def test_cpu_precision(machine: Machine) -> None:
    for unit in ("amx", "avx512_bf16"):
        machine._set(cpu_bfloat16_unit=unit)
        assert choose_precision(CPU).name == "bf16"
        assert unit in choose_precision(CPU).reason
    machine._set(cpu_bfloat16_unit=None)
    assert choose_precision(CPU).name == "fp32"
    assert "likely faster" in choose_precision(CPU, "bf16").reason
    with pytest.raises(ConfigurationError, match=r"float16 far more slowly.*precision=bf16"):
        choose_precision(CPU, "fp16")


def test_cpu_unit_agrees_with_the_kernels_flags() -> None:
    flags = platform._cpuinfo_flags()
    if not flags:
        pytest.skip("no /proc/cpuinfo here")
    unit = platform.cpu_bfloat16_unit()
    assert unit == ("amx" if "amx_tile" in flags else "avx512_bf16" if "avx512_bf16" in flags else None)


def test_mixed_precision_off_means_float32(machine: Machine) -> None:
    machine.nvidia()
    assert choose_precision(CUDA, mixed_precision=False).name == "fp32"
    decision = choose_precision(CUDA, "bf16", mixed_precision=False)
    assert decision.name == "fp32"
    assert "precision=bf16 is not used" in decision.reason


def test_unsupported_precision_is_refused(machine: Machine) -> None:
    machine.nvidia((7, 5))
    with pytest.raises(ConfigurationError, match=r"7\.5 has no bfloat16.*precision=fp16"):
        choose_precision(CUDA, "bf16")
    with pytest.raises(ConfigurationError, match="Invalid precision 'fp8'"):
        choose_precision(CUDA, "fp8")  # type: ignore[arg-type]


def test_autocast_really_changes_the_type(machine: Machine) -> None:
    machine._set(cpu_bfloat16_unit="avx512_bf16")
    weight = torch.randn(4, 4)
    with choose_precision(CPU).autocast(CPU):
        assert (weight @ weight).dtype == torch.bfloat16
        with choose_precision(CPU, "fp32").autocast(CPU):  # also inside another autocast
            assert (weight @ weight).dtype == torch.float32
    assert (weight @ weight).dtype == torch.float32


@pytest.fixture
def torch_settings() -> object:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads(), torch.backends.cudnn.benchmark
    yield before
    torch.set_float32_matmul_precision(before[0])
    torch.set_num_threads(before[1])
    torch.backends.cudnn.benchmark = before[2]


def test_cpu_matmul_setting_keeps_float32_or_is_reverted(machine: Machine, torch_settings: object) -> None:
    torch.set_float32_matmul_precision("highest")
    manager = DeviceManager()
    done = manager.optimize_for_device()
    (matmul,) = [entry for entry in done if "matmul" in entry.what]
    left, right = torch.randn(300, 300), torch.randn(300, 300)
    exact = left.double() @ right.double()
    # Whatever was decided, products are still float32; bfloat16's error would be some 3e-3.
    assert ((left @ right).double() - exact).norm() / exact.norm() < 1e-5
    assert (torch.get_float32_matmul_precision() == "medium") == matmul.what.startswith("set ")
    assert "relative error" in matmul.reason
    manager.restore()
    assert torch.get_float32_matmul_precision() == "highest"


def test_cpu_matmul_is_reverted_where_it_rounds(
    machine: Machine, torch_settings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(
        optimization,
        "matmul_error",
        lambda: 3e-3 if torch.get_float32_matmul_precision() == "medium" else 2e-7,
    )
    manager = DeviceManager()
    done = manager.optimize_for_device()
    assert torch.get_float32_matmul_precision() == "highest"
    assert any("left float32 matmul precision" in what and "3.0e-03" in reason for what, reason in done)


def test_matmul_error_tells_bfloat16_apart() -> None:
    assert optimization.matmul_error() < optimization.FLOAT32_ERROR_LIMIT
    left, right = torch.randn(256, 256), torch.randn(256, 256)
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    exact = left.double() @ right.double()
    assert (rounded - exact).norm() / exact.norm() > 100 * optimization.FLOAT32_ERROR_LIMIT


def test_threads_follow_the_containers_quota(
    machine: Machine, torch_settings: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(4)
    machine._set(cpu_affinity=64)
    monkeypatch.setattr(cgroup, "cpu_quota", lambda: 2.5)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    manager = DeviceManager()
    manager.optimize_for_device()
    assert torch.get_num_threads() == 4  # the user's own choice stands
    monkeypatch.delenv("OMP_NUM_THREADS")
    done = manager.optimize_for_device()
    assert torch.get_num_threads() == 2
    assert any("2.5 cores" in reason for _, reason in done)
    manager.restore()
    assert torch.get_num_threads() == 4


def test_cuda_settings(machine: Machine, torch_settings: object) -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    machine.nvidia((7, 5))
    manager = DeviceManager()
    manager.optimize_for_device()
    assert torch.get_float32_matmul_precision() == "highest"  # no TF32 before capability 8.0
    assert torch.backends.cudnn.benchmark
    manager.restore()
    assert not torch.backends.cudnn.benchmark
    machine.nvidia((8, 6))
    manager = DeviceManager()
    manager.optimize_for_device()
    assert torch.get_float32_matmul_precision() == "high"
    manager.restore()
    assert torch.get_float32_matmul_precision() == "highest"


def test_cuda_leaves_benchmark_to_deterministic_runs(machine: Machine, torch_settings: object) -> None:
    machine.nvidia()
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    try:
        done = DeviceManager().optimize_for_device()
    finally:
        torch.use_deterministic_algorithms(False)
    assert not torch.backends.cudnn.benchmark
    assert any("deterministic" in reason for _, reason in done)


def test_mps_settings_respect_the_users_variable(
    machine: Machine, metal_memory: dict[str, list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.mac()
    manager = DeviceManager()
    monkeypatch.setenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.8")
    assert "0.8" in manager.optimize_for_device()[0].reason
    assert metal_memory["fraction"] == []
    monkeypatch.delenv("PYTORCH_MPS_HIGH_WATERMARK_RATIO")
    assert "limited" in manager.optimize_for_device()[0].what
    manager.restore()
    assert metal_memory["fraction"] == [1.0, 1.7]


FAULTS = """
import resource
import torch
from domainclip.devices import optimization

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
done, undo = optimization._cpu_allocator()
for _ in range(10):  # the heap grows a few times before a free block fits the aligned request
    kept = faults()
for step in undo:
    step()
print(plain, kept if done else "no mallopt")
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="only glibc has these settings")
def test_allocator_keeps_large_blocks_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large block that was freed and is taken again has pages already: far fewer faults than without.

    In a process of its own: which free block is taken again depends on everything the process did before.
    """
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    ran = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    plain, kept = ran.stdout.split(maxsplit=1)
    if not kept.strip().isdigit():
        pytest.skip("this C library has no mallopt")
    if int(plain) < 10_000:  # 64 MiB are 16,384 pages of the usual size
        pytest.skip(f"{plain} faults for 64 MiB: this system gives huge pages, and there is nothing to save")
    assert int(kept) < 1000
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    assert optimization._cpu_allocator() == ([], [])
