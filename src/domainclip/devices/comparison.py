"""Does the device compute what the CPU computes? Embeddings, causal attention, gradients, one optimizer step.

Silent errors of accelerator kernels are found by nothing else: the loss still falls, the model is only
worse. Known ones on Metal are a vector kernel for eight or fewer queries, and causal attention in half
precision that let queries see later keys (pytorch issue 195910); hence the lengths and precisions below.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from domainclip.devices.precision import AUTOCAST_DTYPES, Precision, supported_precisions

TEXT_LENGTHS = (5, 8, 9, 16, 33, 77)
"""Both sides of the eight-query kernel, odd lengths that no vector width divides, and CLIP's full 77."""

# Relative error of an embedding in float32. Sums of some hundred terms in another order differ by about 1e-6;
# Metal's fast exp and rsqrt add a little. A wrong kernel shows as 1e-2 and more.
FLOAT32_TOLERANCE = 1e-4
# Per parameter. The softmax over logits scaled by up to 100 amplifies an embedding's 1e-6 accordingly.
GRADIENT_TOLERANCE = 1e-2
# Fraction of the learning rate. Given equal gradients, AdamW's step is a handful of float32 operations per
# weight.
STEP_TOLERANCE = 1e-2
# Units of the format's roundoff. Embeddings pass some ten rounded layers whose errors add up like a random
# walk.
ROUNDOFFS = 8
# The device may round more often than the CPU does, which keeps more intermediate results in float32.
YARDSTICK_FACTOR = 4.0

# Any: torch types a module's own methods as tensors.
_Encode = Callable[[Any, torch.device], Tensor]

_LEARNING_RATE = 1e-3
_HEAD_WIDTH = 64  # the head width of every published CLIP, and what attention kernels are specialised for


@dataclass(frozen=True)
class Comparison:
    """One quantity on the device against the CPU. ``error`` is relative and NaN when there was no result."""

    name: str
    precision: Precision
    error: float
    tolerance: float
    remedy: str
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance  # NaN compares false


def compare_with_cpu(
    encoder_factory: Callable[[], nn.Module],
    device: torch.device,
    *,
    precisions: Sequence[Precision] | None = None,
    text_lengths: Sequence[int] = TEXT_LENGTHS,
    text_limit: int = 77,
    vocab_size: int = 600,
    end_token: int = 1,
    image_size: int = 32,
    batch: int = 4,
) -> list[Comparison]:
    """Build an encoder on the CPU, copy it to ``device``, and compare what the two compute.

    An operation that raises on the device is a failed comparison, not an exception. torch's float32 settings
    are at their strictest meanwhile, so that what is measured is the kernel and not TF32.

    Args:
        encoder_factory: Makes a module with ``encode_image([B, 3, H, W])``, ``encode_text([B, L], [B, L])``
            (both to ``[B, D]``) and a scalar parameter ``logit_scale`` (a natural logarithm).
        device: The one to compare.
        precisions: All that ``device`` supports, if left out.
        text_lengths: In tokens; those above ``text_limit`` are left out.
        text_limit: The longest text that the encoder takes, in tokens.
        vocab_size: Token ids are drawn below it.
        end_token: Captions end with it and are padded with it.
        image_size: Resolution of the images in pixels.
        batch: Images, and texts, encoded at once.

    Returns:
        For each precision image embeddings, and text embeddings and causal attention at each length; then gradients and
        one optimizer step.
    """
    lengths = [length for length in text_lengths if length <= text_limit]
    reference = encoder_factory().eval()
    on_device = copy.deepcopy(reference).to(device)
    inputs = _Inputs(vocab_size, end_token, image_size, batch)
    results: list[Comparison] = []
    with _strict_float32():
        for precision in precisions or supported_precisions(device):
            results += _compare_embeddings(reference, on_device, device, precision, lengths, inputs)
            results += [_compare_attention(device, precision, length) for length in lengths]
        results += _compare_training(reference, on_device, device, inputs, lengths[-1])
    return results


@contextmanager
def _strict_float32() -> Iterator[None]:
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


@dataclass(frozen=True)
class _Inputs:
    vocab_size: int
    end_token: int
    image_size: int
    batch: int

    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.batch, 3, self.image_size, self.image_size, generator=generator)

    def texts(self, length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask ``[batch, length]``; every second caption is shorter and padded."""
        generator = torch.Generator().manual_seed(length)
        low = self.end_token + 1 if self.end_token < self.vocab_size // 2 else 0
        high = self.vocab_size if low else self.end_token
        ids = torch.randint(low, high, (self.batch, length), generator=generator)
        mask = torch.ones_like(ids)
        ids[:, -1] = self.end_token
        shorter = max(2, length // 2)
        ids[1::2, shorter - 1 :] = self.end_token
        mask[1::2, shorter:] = 0
        return ids, mask


def _compare_embeddings(
    reference: nn.Module,
    on_device: nn.Module,
    device: torch.device,
    precision: Precision,
    lengths: Sequence[int],
    inputs: _Inputs,
) -> list[Comparison]:
    dtype = AUTOCAST_DTYPES[precision]

    def compare(name: str, encode: _Encode, remedy: str) -> Comparison:
        with torch.no_grad():
            exact = encode(reference, torch.device("cpu"))
            tolerance = FLOAT32_TOLERANCE
            if dtype is not None:
                # The CPU's own error in this format is the yardstick, but never less than a few roundoffs.
                with torch.autocast("cpu", dtype=dtype):
                    own = _row_error(encode(reference, torch.device("cpu")), exact)
                tolerance = max(ROUNDOFFS * _roundoff(dtype), YARDSTICK_FACTOR * own)
            error, detail = _attempt(lambda: _row_error(_encode_on(device, dtype, encode, on_device), exact))
        return Comparison(name, precision, error, tolerance, remedy, detail)

    images = inputs.images()
    encode_images: _Encode = lambda model, where: model.encode_image(images.to(where))  # noqa: E731
    results = [compare("image embeddings", encode_images, _remedy(device, precision))]
    for length in lengths:
        remedy = _remedy(device, precision, length=length, attention=True)
        results.append(compare(f"text embeddings, {length} tokens", _text_encoder(*inputs.texts(length)), remedy))
    return results


def _text_encoder(ids: Tensor, mask: Tensor) -> _Encode:
    return lambda model, where: model.encode_text(ids.to(where), mask.to(where))


def _encode_on(device: torch.device, dtype: torch.dtype | None, encode: _Encode, model: nn.Module) -> Tensor:
    with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        return encode(model, device)


def _compare_attention(device: torch.device, precision: Precision, length: int) -> Comparison:
    """Causal attention alone, on inputs of unit size: in a whole model of random weights it hardly shows."""
    dtype = AUTOCAST_DTYPES[precision] or torch.float32
    generator = torch.Generator().manual_seed(length)
    query, key, value = (torch.randn(2, 4, length, _HEAD_WIDTH, generator=generator).to(dtype) for _ in range(3))
    scores = query.double() @ key.double().mT / math.sqrt(_HEAD_WIDTH)
    later = torch.ones(length, length, dtype=torch.bool).triu(1)
    exact = scores.masked_fill(later, -math.inf).softmax(-1) @ value.double()

    def error() -> float:
        ours = F.scaled_dot_product_attention(query.to(device), key.to(device), value.to(device), is_causal=True)
        return _row_error(ours, exact)

    with torch.no_grad():
        found, detail = _attempt(error)
    tolerance = FLOAT32_TOLERANCE if precision == "fp32" else ROUNDOFFS * _roundoff(dtype)
    remedy = _remedy(device, precision, length=length, attention=True)
    return Comparison(f"causal attention, {length} tokens", precision, found, tolerance, remedy, detail)


def _compare_training(
    reference: nn.Module, on_device: nn.Module, device: torch.device, inputs: _Inputs, length: int
) -> list[Comparison]:
    cpu = torch.device("cpu")
    _backward(reference, cpu, inputs, length)
    worst = ""

    def gradient_error() -> float:
        nonlocal worst
        _backward(on_device, device, inputs, length)
        pairs = [
            (name, ours.grad, theirs.grad)
            for (name, ours), theirs in zip(on_device.named_parameters(), reference.parameters(), strict=True)
            if theirs.grad is not None
        ]
        whole = math.sqrt(sum(float(exact.norm()) ** 2 for _, _, exact in pairs if exact is not None))
        errors: dict[str, float] = {}
        for name, ours, exact in pairs:
            if ours is None or exact is None:
                errors[name] = math.nan
                continue
            # Some gradients are zero in exact arithmetic (a key's bias): noise there is measured against the
            # whole.
            scale = max(float(exact.norm()), 1e-3 * whole)
            errors[name] = float((ours.cpu() - exact).norm()) / scale
        worst, error = max(errors.items(), key=lambda item: math.inf if math.isnan(item[1]) else item[1])
        return error

    def step_error() -> float:
        # From equal gradients: Adam's first step divides by their size, and would magnify noise in tiny ones.
        for ours, exact in zip(on_device.parameters(), reference.parameters(), strict=True):
            ours.grad = None if exact.grad is None else exact.grad.to(device)
        _step(reference, fused=False)
        _step(on_device, fused=True)
        return max(
            float((ours.detach().cpu() - exact.detach()).abs().max()) / _LEARNING_RATE
            for ours, exact in zip(on_device.parameters(), reference.parameters(), strict=True)
        )

    error, detail = _attempt(gradient_error)
    results = [
        Comparison(
            "gradients", "fp32", error, GRADIENT_TOLERANCE, _remedy(device, "fp32"), detail or f"largest in {worst}"
        )
    ]
    error, detail = _attempt(step_error)
    remedy = "pass fused=False to AdamW; if that does not help, " + _remedy(device, "fp32")
    results.append(Comparison("AdamW step", "fp32", error, STEP_TOLERANCE, remedy, detail))
    return results


def _backward(model: Any, device: torch.device, inputs: _Inputs, length: int) -> None:
    """Gradients of CLIP's loss on one batch, left in ``.grad``."""
    model.zero_grad()
    ids, mask = inputs.texts(length)
    image = F.normalize(model.encode_image(inputs.images().to(device)), dim=-1)
    text = F.normalize(model.encode_text(ids.to(device), mask.to(device)), dim=-1)
    logits = model.logit_scale.exp() * image @ text.T
    target = torch.arange(len(logits), device=device)
    (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)).backward()


def _step(model: nn.Module, fused: bool) -> None:
    torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01, fused=fused).step()


def _attempt(measure: Callable[[], float]) -> tuple[float, str]:
    """The error measured, or NaN with the exception's first line: a missing kernel is a finding too."""
    try:
        return measure(), ""
    except (RuntimeError, TypeError) as error:  # a missing kernel; a type the device has not (float64 on Metal)
        first = (str(error).splitlines() or [""])[0]
        return math.nan, f"{type(error).__name__}: {first}"


def _row_error(ours: Tensor, exact: Tensor) -> float:
    """Largest relative error of a row in Euclidean norm; NaN when anything is NaN."""
    exact = exact.double()
    rows = (ours.cpu().double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    return float(rows.max())  # max passes NaN on


def _roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def _remedy(device: torch.device, precision: Precision, *, length: int | None = None, attention: bool = False) -> str:
    """What to switch off, the cheapest first."""
    steps: list[str] = []
    if precision != "fp32":
        steps.append("set precision=fp32")
    if attention:
        steps.append("use attention 'eager' instead of 'sdpa'")
        if length is not None and length <= 8 and device.type == "mps":
            steps.append("pad captions to more than 8 tokens")
    if device.type == "mps":
        steps.append("unset PYTORCH_MPS_FAST_MATH and PYTORCH_MPS_PREFER_METAL")
        steps.append("for a missing kernel start with PYTORCH_ENABLE_MPS_FALLBACK=1")
        steps.append("set use_mps=false")
    elif device.type == "cuda":
        steps.append("use the CPU (start with CUDA_VISIBLE_DEVICES='')")
    else:
        steps.append("reinstall torch")
    return "; or ".join(steps)
