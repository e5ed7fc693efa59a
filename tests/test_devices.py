"""Devices on machines played by replacing ``devices.platform``: Macs, Rosetta, NVIDIA, plain CPUs."""

from __future__ import annotations

import logging
from pathlib import Path

import psutil
import pytest
import torch

from domainclip.devices import DeviceManager, MemoryManager, cgroup, choose_precision, optimization, platform
from domainclip.devices.precision import supported_precisions
from domainclip.errors import ConfigurationError, DeviceError, MPSCompatibilityError

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


# --- which device ---


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


# --- memory ---


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


# --- precision ---


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


# --- settings ---


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
