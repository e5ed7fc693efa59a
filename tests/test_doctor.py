"""The doctor: that its comparison passes on a sound device, and finds each kind of broken one."""

from __future__ import annotations

import importlib.metadata
import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainclip import doctor
from domainclip.devices import comparison, platform
from domainclip.devices.comparison import Comparison, compare_with_cpu
from domainclip.errors import ConfigurationError
from domainclip.models.tiny import make_tiny_clip

CPU = torch.device("cpu")


class PlayedDevice(nn.Module):
    """A tiny CLIP that, once moved with ``.to``, computes as a faulty accelerator would."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.encoder = make_tiny_clip(seed=0)
        self.fault = fault
        self.moved = False

    @property
    def logit_scale(self) -> Tensor:
        return self.encoder.logit_scale

    def to(self, *args: Any, **kwargs: Any) -> PlayedDevice:
        self.moved = True
        return super().to(*args, **kwargs)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        if self.moved and self.fault == "missing kernel":
            raise NotImplementedError("The operator 'aten::_upsample_bicubic2d_aa' is not implemented for MPS")
        found = self.encoder.encode_image(pixel_values)
        if self.moved and self.fault == "wrong backward" and found.requires_grad:
            found.register_hook(lambda grad: grad * 1.05)
        return found

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        found = self.encoder.encode_text(ids, mask)
        if self.moved and self.fault == "short texts" and ids.shape[1] <= 8:
            found = found + 0.01 * found.roll(1, dims=-1)
        if self.moved and self.fault == "NaN in half" and torch.is_autocast_enabled("cpu"):
            found = found * math.nan
        return found


def compare(fault: str = "", **options: Any) -> dict[tuple[str, str], Comparison]:
    vocabulary = len(make_tiny_clip().processor.tokenizer)
    found = compare_with_cpu(
        lambda: PlayedDevice(fault), CPU, precisions=("fp32", "bf16"), vocab_size=vocabulary, **options
    )
    return {(item.name, item.precision): item for item in found}


def test_sound_device_passes_in_every_length_and_precision() -> None:
    found = compare()
    assert [key for key, item in found.items() if not item.ok] == []
    for precision in ("fp32", "bf16"):
        assert ("image embeddings", precision) in found
        for length in (5, 8, 9, 16, 33, 77):
            assert (f"text embeddings, {length} tokens", precision) in found
            assert (f"causal attention, {length} tokens", precision) in found
    # The reduced precision was really used: its error is that of bfloat16, not float32's.
    assert found["image embeddings", "bf16"].error > 1e-4
    # Fused and plain AdamW are two implementations; equal to rounding, not to the bit.
    assert 0 <= found["AdamW step", "fp32"].error < 1e-2


def test_lengths_stop_at_the_models_limit() -> None:
    names = {name for name, _ in compare(text_limit=16)}
    assert "text embeddings, 16 tokens" in names
    assert not any("33" in name or "77" in name for name in names)


def test_wrong_short_texts_are_found() -> None:
    wrong = {key for key, item in compare("short texts").items() if not item.ok}
    assert ("text embeddings, 5 tokens", "fp32") in wrong
    assert ("text embeddings, 8 tokens", "fp32") in wrong
    assert not any("9 tokens" in name or "77" in name for name, _ in wrong)


def test_missing_kernel_is_a_finding_not_a_crash() -> None:
    found = compare("missing kernel")
    image = found["image embeddings", "fp32"]
    assert not image.ok
    assert math.isnan(image.error)
    assert "NotImplementedError: The operator 'aten::_upsample_bicubic2d_aa'" in image.detail
    assert not found["gradients", "fp32"].ok
    assert found["text embeddings, 77 tokens", "fp32"].ok


def test_nan_in_reduced_precision_is_found_and_names_the_switch() -> None:
    wrong = {key: item for key, item in compare("NaN in half").items() if not item.ok}
    assert {precision for _, precision in wrong} == {"bf16"}
    assert all("precision=fp32" in item.remedy for item in wrong.values())


def test_wrong_backward_is_found_though_embeddings_agree() -> None:
    wrong = {key: item for key, item in compare("wrong backward").items() if not item.ok}
    assert list(wrong) == [("gradients", "fp32")]
    assert "largest in encoder.model." in wrong["gradients", "fp32"].detail


def test_leaking_causal_attention_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = F.scaled_dot_product_attention

    def leaking(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False, **options: Any) -> Tensor:
        # The mask applied once for each group of four queries, in half precision only.
        if not is_causal or query.dtype == torch.float32:
            return sound(query, key, value, is_causal=is_causal, **options)
        length = query.shape[-2]
        last = torch.arange(length) // 4 * 4 + 3
        mask = torch.arange(length)[None, :] <= last[:, None]
        return sound(query, key, value, attn_mask=mask)

    monkeypatch.setattr(comparison.F, "scaled_dot_product_attention", leaking)
    wrong = {key: item for key, item in compare().items() if not item.ok and "attention" in key[0]}
    assert {name for name, _ in wrong} == {f"causal attention, {n} tokens" for n in (5, 8, 9, 16, 33, 77)}
    assert {precision for _, precision in wrong} == {"bf16"}
    assert all("attention 'eager'" in item.remedy for item in wrong.values())


def test_wrong_optimizer_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = comparison._step

    def no_step_when_fused(model: nn.Module, fused: bool) -> None:
        if not fused:
            sound(model, fused)

    monkeypatch.setattr(comparison, "_step", no_step_when_fused)
    wrong = {key: item for key, item in compare().items() if not item.ok}
    assert list(wrong) == [("AdamW step", "fp32")]
    assert wrong["AdamW step", "fp32"].error == pytest.approx(1.0, rel=0.1)  # Adam's first step: one learning rate
    assert "fused=False" in wrong["AdamW step", "fp32"].remedy


def test_comparison_leaves_torch_and_random_state_alone() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.get_rng_state()
    torch.set_float32_matmul_precision("medium")
    try:
        compare(text_limit=5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert torch.backends.cudnn.allow_tf32 == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


# --- the report ---


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"system": "Linux", "machine": "x86_64", "sysctl": None, "macos_version": None}
    answers |= {"mps_is_available": False, "cuda_is_built": False, "nvidia_driver_present": False}
    for name, answer in answers.items():
        monkeypatch.setattr(platform, name, lambda *_, answer=answer: answer)


@pytest.fixture
def played_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"system": "Darwin", "machine": "arm64", "macos_version": (15, 0), "probe": None}
    answers |= {"mps_is_built": True, "mps_is_available": True, "nvidia_driver_present": False}
    for name, answer in answers.items():
        monkeypatch.setattr(platform, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(platform, "sysctl", {"machdep.cpu.brand_string": "Apple M3 Pro"}.get)
    for name, gigabytes in (("current", 1), ("driver", 2)):
        monkeypatch.setattr(torch.mps, f"{name}_allocated_memory", lambda gb=gigabytes: gb << 30)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 << 30)
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", lambda _: None)
    for name in ("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "PYTORCH_MPS_FAST_MATH", "PYTORCH_ENABLE_MPS_FALLBACK"):
        monkeypatch.delenv(name, raising=False)


def check(report: doctor.DoctorReport, name: str) -> doctor.Check:
    (found,) = [item for item in report.checks if item.name == name]
    return found


def test_cpu_only_machine_claims_no_comparison(plain_cpu: None) -> None:
    matmul, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    report = doctor.diagnose()
    assert check(report, "numbers") == doctor.Check("numbers", "skip", "no accelerator: nothing to compare")
    assert report.comparisons == []
    assert report.device["type"] == "cpu"
    assert report.exit_code == 0
    assert report.versions["torch"] == torch.__version__
    # The settings were tried and put back.
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == (matmul, threads)


def test_report_is_json_and_text(plain_cpu: None) -> None:
    report = doctor.diagnose()
    parsed = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert parsed["exit_code"] == 0
    assert parsed["device"]["fallbacks"][0]["device"] == "mps"
    text = report.render(width=100, colour=False)
    assert "\x1b" not in text
    assert all(item.name in text for item in report.checks)
    assert "\x1b[" in report.render(width=100, colour=True)


def test_device_asked_for_and_absent_fails_the_report(plain_cpu: None) -> None:
    report = doctor.diagnose("mps")
    assert check(report, "device asked for").status == "fail"
    assert "not a Mac" in check(report, "device asked for").detail
    assert report.exit_code == 1
    assert report.device["type"] == "cpu"  # and the rest was still looked at
    with pytest.raises(ConfigurationError, match="Invalid device"):
        doctor.diagnose("gpu")


def test_idle_gpu_is_a_warning(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "nvidia_driver_present", lambda: True)
    found = check(doctor.diagnose(), "device")
    assert found.status == "warn"
    assert "an NVIDIA GPU" in found.detail
    assert "install a CUDA build" in found.advice
    assert check(doctor.diagnose("cpu"), "device").status == "ok"


def test_rosetta_fails_with_advice(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(platform, "macos_version", lambda: (15, 0))
    monkeypatch.setattr(platform, "sysctl", {"sysctl.proc_translated": "1"}.get)
    report = doctor.diagnose()
    assert report.exit_code == 1
    assert "Rosetta" in check(report, "platform").detail
    assert "arm64 Python" in check(report, "platform").advice
    assert check(report, "device").status == "warn"


def test_wrong_versions_fail(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "torch<3,>=2.6",
        "transformers<6,>=99.0",
        "no-such-package>=1",
        "scikit-image>=99; extra == 'demo'",
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    found = check(doctor.diagnose(), "versions")
    assert found.status == "fail"
    assert "transformers" in found.detail
    assert "no-such-package is not installed" in found.detail
    assert "torch" not in found.detail
    assert "scikit-image" not in found.detail


def test_mac_with_agreeing_numbers(played_mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def on_the_cpu(factory: Any, device: torch.device, **options: Any) -> list[Comparison]:
        asked.append(device)
        options["precisions"] = ("fp32", "bf16")
        return compare_with_cpu(factory, CPU, **options)

    monkeypatch.setattr(doctor, "compare_with_cpu", on_the_cpu)
    report = doctor.diagnose()
    assert asked == [torch.device("mps")]
    assert report.exit_code == 0
    assert check(report, "precision").detail.startswith("bf16: Apple M3 Pro")
    assert check(report, "numbers in fp32").status == "ok"
    assert check(report, "numbers in bf16").status == "ok"
    assert report.device["memory"]["unified"] is True
    assert "Apple M3 Pro" in report.render(width=200, colour=False)


def test_mac_with_differing_numbers_names_the_switches(played_mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(factory: Any, device: torch.device, **options: Any) -> list[Comparison]:
        remedy = comparison._remedy(device, "bf16", length=5, attention=True)
        return [
            Comparison("image embeddings", "fp32", 1e-6, 1e-4, "unused"),
            Comparison("text embeddings, 5 tokens", "bf16", math.nan, 1e-2, remedy, "NotImplementedError: gone"),
        ]

    monkeypatch.setattr(doctor, "compare_with_cpu", broken)
    report = doctor.diagnose()
    assert report.exit_code == 1
    assert check(report, "numbers in fp32").status == "ok"
    advice = check(report, "numbers in bf16").advice
    for switch in (
        "precision=fp32",
        "attention 'eager'",
        "more than 8 tokens",
        "PYTORCH_MPS_FAST_MATH",
        "use_mps=false",
    ):
        assert switch in advice
    item = report.to_dict()["comparisons"][1]
    assert (item["error"], item["ok"]) == (None, False)
    json.dumps(report.to_dict(), allow_nan=False)


def test_device_that_takes_no_model_is_a_failed_check(played_mac: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> list[Comparison]:
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr(doctor, "compare_with_cpu", no_room)
    report = doctor.diagnose()
    assert check(report, "numbers").status == "fail"
    assert "MPS backend out of memory" in check(report, "numbers").detail


@pytest.mark.parametrize(
    ("name", "value", "status"),
    [
        ("PYTORCH_MPS_FAST_MATH", "1", "warn"),
        ("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.0", "warn"),
        ("PYTORCH_MPS_HIGH_WATERMARK_RATIO", "0.9", "ok"),
        ("PYTORCH_ENABLE_MPS_FALLBACK", "1", "ok"),
    ],
)
def test_doubtful_variables(
    played_mac: None, monkeypatch: pytest.MonkeyPatch, name: str, value: str, status: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(doctor, "compare_with_cpu", lambda *_, **__: [])
    assert check(doctor.diagnose(), "Metal's variables").status == status


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_real_nvidia_gpu_agrees_with_the_cpu() -> None:
    assert [item for item in doctor.compare_tiny(torch.device("cuda")) if not item.ok] == []


@pytest.mark.apple_silicon
@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="needs an Apple Silicon Mac")
def test_a_real_mac_agrees_with_the_cpu_in_float32() -> None:
    found = doctor.compare_tiny(torch.device("mps"), precisions=("fp32",))
    assert [item for item in found if not item.ok] == []


def test_missing_parts_and_little_shared_memory_are_named(monkeypatch):
    installed = importlib.metadata.version
    absent = {"pydicom"}

    def version(name):
        if name in absent:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    (parts,) = doctor._check_extras()
    assert parts.status == "ok"
    assert "not installed: " in parts.detail
    assert "dicom" in parts.detail.partition("not installed: ")[2]
    assert "domainclip[" in parts.advice
    monkeypatch.setattr(doctor.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(doctor.psutil, "disk_usage", lambda path: SimpleNamespace(free=64e6))
    (shared,) = doctor._check_shared_memory()
    assert (shared.status, "num_workers=0" in shared.advice, "--shm-size" in shared.advice) == ("warn", True, True)
