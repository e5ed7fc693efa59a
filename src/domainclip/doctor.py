"""``domainclip doctor``: what the machine has, whether versions fit, whether the device computes rightly."""

from __future__ import annotations

import importlib.metadata
import io
import math
import os
import platform as stdlib_platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import psutil
import torch
from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from domainclip.devices import platform
from domainclip.devices.comparison import Comparison, compare_with_cpu
from domainclip.devices.manager import DeviceManager
from domainclip.devices.precision import (
    MACOS_WITH_BFLOAT16,
    Precision,
    choose_precision,
    supported_precisions,
)
from domainclip.errors import CLIPFinetuningError, DeviceError
from domainclip.models.tiny import make_tiny_clip

__all__ = ["Check", "Comparison", "DoctorReport", "compare_with_cpu", "diagnose"]

Status = Literal["ok", "warn", "fail", "skip"]

# Below this a training state of CLIP ViT-B/32 (16 bytes for each of 151 million weights) does not fit.
_LEAST_SHARED_MEMORY_GB = 0.5
_LEAST_MEMORY_GB = 2.5

_STYLES: dict[str, str] = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. ``skip``: there was nothing to look at, so nothing is claimed."""

    name: str
    status: Status
    detail: str
    advice: str = ""


@dataclass
class DoctorReport:
    """What ``diagnose`` found. ``exit_code`` is 1 when any check failed; warnings leave it at 0."""

    checks: list[Check] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        return int(any(check.status == "fail" for check in self.checks))

    def to_dict(self) -> dict[str, Any]:
        """The report for programs.

        Returns:
            Plain values only; an error that is not a number becomes None, as JSON has no NaN.
        """
        return {
            "exit_code": self.exit_code,
            "device": self.device,
            "versions": self.versions,
            "checks": [asdict(check) for check in self.checks],
            "comparisons": [
                {**asdict(item), "error": item.error if math.isfinite(item.error) else None, "ok": item.ok}
                for item in self.comparisons
            ],
        }

    def render(self, width: int | None = None, colour: bool | None = None) -> str:
        """The report for a terminal.

        Args:
            width: In characters; the terminal's, if left out.
            colour: None: when standard output is a terminal and NO_COLOR is unset.

        Returns:
            Text to be printed as it is (it may hold escape codes for colour).
        """
        if colour is None:
            colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        console = Console(
            file=io.StringIO(), width=width, force_terminal=colour, color_system="auto" if colour else None
        )
        table = Table(box=box.SIMPLE, title=f"domainclip doctor: {self.device.get('description', '')}")
        for heading in ("", "check", "finding"):
            table.add_column(heading, overflow="fold")
        for check in self.checks:
            finding = Text(check.detail)
            if check.advice:
                finding.append(f"\n→ {check.advice}", style="bold")
            table.add_row(Text(check.status, style=_STYLES[check.status]), check.name, finding)
        console.print(table)
        failed = sum(check.status == "fail" for check in self.checks)
        warned = sum(check.status == "warn" for check in self.checks)
        console.print(f"{failed} failed, {warned} warned, of {len(self.checks)} checks", highlight=False)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()


def diagnose(device: str | None = None) -> DoctorReport:
    """Look at platform, versions, device, memory, precision and settings; compare the device with the CPU.

    torch's settings are left as they were.

    Args:
        device: As for ``DeviceManager``. One that cannot be used is a failed check, and the rest is done on the device
            chosen instead.

    Returns:
        All checks and figures.

    Raises:
        ConfigurationError: The name is no device.
    """
    report = DoctorReport()
    report.checks.append(_check_platform())
    _check_versions(report)
    report.checks += _check_extras()
    manager = _choose_device(report, device)
    report.checks.append(_check_memory(report, manager))
    report.checks += _check_shared_memory()
    decision = choose_precision(manager.device)
    report.checks.append(Check("precision", "ok", f"{decision.name}: {decision.reason}"))
    report.device |= {
        "precision": decision.name,
        "supported_precisions": list(supported_precisions(manager.device)),
    }
    report.checks.append(_check_settings(manager))
    if manager.device.type == "mps" or platform.is_apple_silicon():
        report.checks.append(_check_environment())
    _check_numbers(report, manager.device)
    return report


def _check_platform() -> Check:
    shown = f"{platform.system()} on {platform.machine()}"
    version = platform.macos_version()
    if version is not None:
        shown = f"macOS {'.'.join(map(str, version))} on {platform.chip_name() or platform.machine()}"
    if platform.is_rosetta():
        advice = (
            "Install an arm64 Python, in which `python -c 'import platform; print(platform.machine())'` "
            "says arm64, and domainclip in it"
        )
        return Check("platform", "fail", f"{shown}: Python is an Intel build, translated by Rosetta", advice)
    if version is not None and version < MACOS_WITH_BFLOAT16:
        return Check("platform", "warn", f"{shown} has no bfloat16 on the GPU", "Update macOS to 14 or later")
    return Check("platform", "ok", shown)


def _check_versions(report: DoctorReport) -> None:
    """The bounds are those of the installed package, so that they are written in one place only."""
    report.versions["python"] = stdlib_platform.python_version()
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires("domainclip") or []]
        report.versions["domainclip"] = importlib.metadata.version("domainclip")
    except importlib.metadata.PackageNotFoundError:
        advice = "Install it (pip install -e .) so that the versions it needs are known"
        report.checks.append(Check("versions", "warn", "domainclip runs from its source, not installed", advice))
        return
    wrong: list[str] = []
    for requirement in wanted:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed (needs {requirement.specifier})")
            continue
        report.versions[requirement.name] = found
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needs {requirement.specifier})")
    if wrong:
        report.checks.append(Check("versions", "fail", "; ".join(wrong), "pip install --upgrade domainclip"))
        return
    names = ("python", "torch", "transformers", "domainclip")
    report.checks.append(Check("versions", "ok", ", ".join(f"{name} {report.versions[name]}" for name in names)))


def _check_extras() -> list[Check]:
    """Which optional parts are installed; nothing where the package itself is not."""
    try:
        package = importlib.metadata.metadata("domainclip")
        wanted = [Requirement(line) for line in importlib.metadata.requires("domainclip") or []]
    except importlib.metadata.PackageNotFoundError:
        return []
    there: list[str] = []
    missing: list[str] = []
    for extra in sorted(set(package.get_all("Provides-Extra") or []) - {"dev"}):
        marked = [(each.name, each.marker) for each in wanted if each.marker is not None]
        own = [name for name, mark in marked if mark.evaluate({"extra": extra}) and not mark.evaluate({"extra": ""})]
        (there if all(map(_is_installed, own)) else missing).append(extra)
    detail = f"installed: {', '.join(there) or 'none'}"
    advice = ""
    if missing:
        detail += f"; not installed: {', '.join(missing)}"
        advice = f"Where you need one: pip install 'domainclip[{missing[0]}]'"
    return [Check("optional parts", "ok", detail, advice)]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _check_shared_memory() -> list[Check]:
    """Where Linux keeps what the processes that read images hand over."""
    if not os.path.isdir("/dev/shm"):
        return []
    free = psutil.disk_usage("/dev/shm").free / 1e9
    detail = f"{free:.1f} GB free in /dev/shm, by which processes that read images hand them over"
    if free < _LEAST_SHARED_MEMORY_GB:
        advice = "Set num_workers=0, or give the container more (docker run --shm-size=2g)"
        return [Check("shared memory", "warn", detail, advice)]
    return [Check("shared memory", "ok", detail)]


def _choose_device(report: DoctorReport, asked: str | None) -> DeviceManager:
    try:
        manager = DeviceManager(device=asked)
    except DeviceError as error:
        report.checks.append(Check("device asked for", "fail", str(error), "Leave the device unset to have one chosen"))
        manager = DeviceManager()
    idle: list[str] = []
    if asked is None:  # who asks for the CPU knows of the GPU
        if platform.is_apple_silicon() and manager.device.type != "mps":
            idle.append("Apple's GPU")
        if platform.nvidia_driver_present() and manager.device.type != "cuda":
            idle.append("an NVIDIA GPU")
    passed_over = "; ".join(f"{name}: {reason}" for name, reason in manager.fallbacks)
    detail = f"{manager.device} ({manager.name}): {manager.reason}"
    if idle:
        report.checks.append(Check("device", "warn", f"{detail}. Idle: {', '.join(idle)}", passed_over))
    else:
        report.checks.append(Check("device", "ok", detail))
    report.device = {
        "type": manager.device.type,
        "name": manager.name,
        "description": f"{manager.device} ({manager.name})",
        "reason": manager.reason,
        "fallbacks": [entry._asdict() for entry in manager.fallbacks],
        "is_apple_silicon": manager.is_apple_silicon,
        "is_rosetta": platform.is_rosetta(),
    }
    return manager


def _check_memory(report: DoctorReport, manager: DeviceManager) -> Check:
    memory = manager.get_memory_info()
    report.device["memory"] = memory
    available = float(memory["available_gb"] or 0.0)
    detail = f"{available:.1f} GB available of {memory['total_gb']:.1f} GB"
    if memory.get("unified"):
        detail += f", shared with the CPU; Metal recommends at most {memory['mps_recommended_gb']:.1f} GB"
    if available < _LEAST_MEMORY_GB:
        advice = "Close other programs, or train a smaller model"
        return Check("memory", "warn", f"{detail}: too little to train CLIP ViT-B/32", advice)
    return Check("memory", "ok", detail)


def _check_settings(manager: DeviceManager) -> Check:
    try:
        done = manager.optimize_for_device()
    finally:
        manager.restore()
    detail = "; ".join(f"{what} ({reason})" for what, reason in done) or "nothing to change"
    return Check("device settings", "ok", f"Training would have: {detail}")


def _check_environment() -> Check:
    """Variables that torch reads when it is imported: setting them in a running program has no effect."""
    doubtful = {
        "PYTORCH_MPS_FAST_MATH": (("1",), "trades the exactness of exp and division for speed"),
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO": (
            ("0", "0.0"),
            "lifts Metal's memory limit: the machine may stall",
        ),
    }
    found = [
        f"{name}={os.environ[name]} {meaning}"
        for name, (values, meaning) in doubtful.items()
        if os.environ.get(name) in values
    ]
    if found:
        return Check("Metal's variables", "warn", "; ".join(found), "Unset them before starting Python")
    fallback = os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "unset")
    return Check("Metal's variables", "ok", f"PYTORCH_ENABLE_MPS_FALLBACK is {fallback}")


def _check_numbers(report: DoctorReport, device: torch.device) -> None:
    if device.type == "cpu":
        report.checks.append(Check("numbers", "skip", "no accelerator: nothing to compare"))
        return
    try:
        report.comparisons = compare_tiny(device)
    except (CLIPFinetuningError, RuntimeError) as error:  # not even the copy to the device worked
        advice = "Free the device's memory, or run on the CPU (use_mps=false, CUDA_VISIBLE_DEVICES='')"
        report.checks.append(
            Check("numbers", "fail", f"the comparison with the CPU could not be made: {error}", advice)
        )
        return
    report.checks += summarise(report.comparisons)


def compare_tiny(device: torch.device, precisions: Sequence[Precision] | None = None) -> list[Comparison]:
    """``compare_with_cpu`` on a small CLIP of random weights.

    Args:
        device: The one to compare.
        precisions: All that it supports, if left out.

    Returns:
        One comparison for each quantity.
    """
    encoder = make_tiny_clip(seed=0)
    tokenizer = encoder.processor.tokenizer
    return compare_with_cpu(
        lambda: encoder,
        device,
        precisions=precisions,
        text_limit=encoder.text_length,
        vocab_size=len(tokenizer),
        end_token=tokenizer.eos_token_id,
        image_size=encoder.native_resolution,
    )


def summarise(comparisons: list[Comparison]) -> list[Check]:
    """Sum comparisons up, by precision.

    Args:
        comparisons: Of one device.

    Returns:
        One check for each precision: how many agree, or which differ, by how much, and what to switch off.
    """
    checks: list[Check] = []
    for precision in dict.fromkeys(item.precision for item in comparisons):
        group = [item for item in comparisons if item.precision == precision]
        wrong = [item for item in group if not item.ok]
        name = f"numbers in {precision}"
        if not wrong:
            closest = max(group, key=lambda item: item.error / item.tolerance)
            detail = (
                f"{len(group)} results agree with the CPU; nearest to its limit: {closest.name}, "
                f"relative error {closest.error:.1e} of {closest.tolerance:.1e}"
            )
            checks.append(Check(name, "ok", detail))
            continue
        shown = [f"{w.name}: {w.detail or f'relative error {w.error:.1e}, limit {w.tolerance:.1e}'}" for w in wrong]
        advice = " / ".join(dict.fromkeys(item.remedy for item in wrong))
        checks.append(Check(name, "fail", "; ".join(shown), advice))
    return checks
