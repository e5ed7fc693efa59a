"""Which back end computes: the one that is asked for, or the fastest that a short trial at the start admits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from domainclip.devices.platform import cpu_bfloat16_unit
from domainclip.devices.precision import supported_precisions
from domainclip.errors import BackendError, CLIPFinetuningError, MissingExtraError
from domainclip.inference.backends.encoder import BACKENDS, Precision
from domainclip.inference.backends.golden import GoldenBatch, check_cosine
from domainclip.inference.backends.model_graphs import ModelGraphs
from domainclip.inference.backends.names import AUTO, TORCH, in_order, parse_backend
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.models.library import first_line

TRIAL_SECONDS = 3.0
"""What the trial of all back ends may take."""
_SECONDS_EACH, _REPEATS = 0.25, 5
_QUICKLY_CONVERTED = 2_000_000
"""Weights of a model that is converted in about a second: the trial does it unasked."""


@dataclass(frozen=True)
class Choice:
    """A back end that was taken.

    Attributes:
        shapes: What encodes by it.
        reason: One line that says which it is, why, and what became of the others.
    """

    shapes: FixedShapes
    reason: str


def choose_backend(graphs: ModelGraphs, wanted: str) -> Choice:
    """Take the back end that is asked for; of ``auto`` the fastest that can be had within ``TRIAL_SECONDS``.

    Args:
        graphs: Of the loaded model.
        wanted: The recipe's ``backend``.

    Returns:
        What encodes, and why.

    Raises:
        ConfigurationError: There is no such back end or precision.
        MissingExtraError: It is not installed.
        BackendError: It is refused, or the model cannot be converted.
    """
    name, precision = parse_backend(wanted)
    if name == AUTO:
        return _fastest(graphs)
    if name == TORCH:
        if precision is None or precision == "fp32":  # the golden batch is made by it: there is nothing to compare
            return Choice(graphs.torch(), "Back end: torch (fp32), as asked for")
        found = _torch(graphs, precision)
        return Choice(found.shapes, f"Back end: {found.name}, as asked for{found.agreement}")
    backend = BACKENDS[name]
    if (package := backend.missing()) is not None:
        raise MissingExtraError(package, backend.extra, f"backend={name}")
    refused: list[str] = []
    admitted = _first_admitted(graphs, name, (precision,) if precision else backend.precisions(), refused)
    if admitted is None:
        raise BackendError(f"{'; '.join(refused)}. Use another back end, such as backend=torch")
    told = [f"Back end: {admitted.name}, as asked for{admitted.agreement}", *refused]
    return Choice(admitted.shapes, "; ".join(told))


@dataclass(frozen=True)
class _Admitted:
    """A back end that agrees with float32."""

    shapes: FixedShapes
    golden: GoldenBatch
    agreement: str = ""

    @classmethod
    def checked(cls, shapes: FixedShapes, golden: GoldenBatch) -> _Admitted:
        cosines = {"image": golden.image_cosine(shapes), "text": golden.text_cosine(shapes)}
        for tower, cosine in cosines.items():
            check_cosine(tower, cosine, shapes.encoder.precision)
        found = f" (least cosine to float32: images {cosines['image']:.5f}, texts {cosines['text']:.5f})"
        return cls(shapes, golden, found)

    @property
    def name(self) -> str:
        return f"{self.shapes.encoder.name} ({self.shapes.encoder.precision})"


def _torch(graphs: ModelGraphs, precision: Precision) -> _Admitted:
    if precision not in (allowed := supported_precisions(graphs.device)):
        raise BackendError(f"torch on the device {graphs.device.type} computes in {' or '.join(allowed)} here")
    shapes = graphs.torch(precision)
    if precision == "fp32":
        return _Admitted(shapes, graphs.golden)
    return _Admitted.checked(shapes, graphs.golden)


def _first_admitted(
    graphs: ModelGraphs, name: str, precisions: Sequence[Precision], refused: list[str]
) -> _Admitted | None:
    """A back end in the first precision that the golden batch admits; why the others are refused is added."""
    for precision in precisions:
        try:
            return _Admitted.checked(*graphs.load(name, precision))
        except BackendError as error:
            refused.append(f"{name} ({precision}) is refused: {error}")
    return None


def _fastest(graphs: ModelGraphs) -> Choice:
    if graphs.device.type != "cpu":
        return Choice(graphs.torch(), f"Back end: torch (fp32), since the model is on the device {graphs.device.type}")
    start, slowest = time.perf_counter(), 0.0
    trials: list[_Trial] = []
    notes: list[str] = []
    for name, make in _candidates(graphs, notes):
        began = time.perf_counter()
        if began - start + slowest > TRIAL_SECONDS:
            notes.append(f"{name} was not tried: the {TRIAL_SECONDS:g} seconds for that are over")
            continue
        try:
            if (found := make()) is not None:
                trials.append(_Trial.of(found))
        except CLIPFinetuningError as error:
            notes.append(f"{name} cannot be used: {first_line(error)}")
        slowest = max(slowest, time.perf_counter() - began)
    if not trials:
        return Choice(graphs.torch(), "; ".join(["Back end: torch (fp32)", *notes]))
    best, *others = sorted(trials, key=lambda trial: trial.image_ms + trial.text_ms)
    told = [f"Back end: {best}, the fastest{best.admitted.agreement}", *map(str, others), *notes]
    return Choice(best.admitted.shapes, "; ".join(told))


def _candidates(graphs: ModelGraphs, notes: list[str]) -> Iterator[tuple[str, Callable[[], _Admitted | None]]]:
    """What can be tried at once: the back ends whose graphs are there or quickly made, and torch after them, which is
    taken untried where nothing else is."""
    quick = sum(value.numel() for value in graphs.encoder.parameters()) <= _QUICKLY_CONVERTED
    for name in in_order():
        backend = BACKENDS[name]
        if (package := backend.missing()) is not None:
            notes.append(f"{name} is not installed (pip install 'domainclip[{backend.extra}]' brings {package})")
            continue
        there: list[Precision] = [each for each in backend.precisions() if quick or graphs.find(name, each) is not None]
        if "int8" in backend.graphs and graphs.find(name, "int8") is not None:  # only who asked for it has one
            there.insert(0, "int8")
        if there:
            yield name, lambda name=name, there=there: _first_admitted(graphs, name, there, notes)  # type: ignore[misc]
        else:
            notes.append(f"{name} has no graph of this model yet: backend={name} makes one, once")
    yield TORCH, lambda: _torch(graphs, "fp32")
    if cpu_bfloat16_unit() is not None:
        yield f"{TORCH} (bf16)", lambda: _torch(graphs, "bf16")


@dataclass(frozen=True)
class _Trial:
    """What a back end takes for the golden batch."""

    admitted: _Admitted
    image_ms: float
    text_ms: float

    @classmethod
    def of(cls, admitted: _Admitted) -> _Trial:
        shapes, golden = admitted.shapes, admitted.golden
        images = _milliseconds(lambda: shapes.encode_images(golden.images)) / len(golden.images)
        texts = _milliseconds(lambda: shapes.encode_tokens(golden.ids)) / len(golden.ids)
        return cls(admitted, images, texts)

    def __str__(self) -> str:
        return f"{self.admitted.name} {self.image_ms:.1f} ms an image, {self.text_ms:.1f} ms a text"


def _milliseconds(work: Callable[[], object]) -> float:
    """The least time of a few, so that neither the first use nor other work on the machine counts."""
    taken: list[float] = []
    while len(taken) < _REPEATS and sum(taken) < _SECONDS_EACH:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return 1000 * min(taken)
