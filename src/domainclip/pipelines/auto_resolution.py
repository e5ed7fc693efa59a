"""``auto_resolution``: the resolution to train at, from the images' sizes, the memory, and the speed that is wanted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from domainclip.config import CLIPFinetuningConfig, DataSettings, FrozenConfig, MemorySettings, OptimizerSettings
from domainclip.data.images.reader import image_header
from domainclip.data.records import ImageTextPair
from domainclip.devices.memory import GB
from domainclip.devices.precision import PrecisionDecision
from domainclip.errors import DataError, ImageError, MemoryConstraintError
from domainclip.inference import ModelSession
from domainclip.models import DualEncoder
from domainclip.pipelines.probe_resolution import at_larger, larger_resolution, may_be_larger
from domainclip.resolve import Decision, contrastive_batch
from domainclip.resolve.resolution import ShortSides, choose_resolution
from domainclip.training.checkpoint import CheckpointStore
from domainclip.training.memory.model import MARGIN, SMALLEST_EFFICIENT
from domainclip.training.memory.plan import StepCounter
from domainclip.training.step.adaptive_step import BeforeStep

log = logging.getLogger(__name__)

HEADERS = 2000
"""Images whose size is read: their 95th percentile lies between the 94th and 96th of all (two standard errors)."""

TIMED = 3


class AutoResolution:
    """Chooses once for the same recipe, rows and device, so that whoever asks later is told the same, whatever the
    machine is doing by then."""

    def __init__(self) -> None:
        self._asked: Any = None
        self._decisions: list[Decision] = []

    def chooser(
        self,
        config: CLIPFinetuningConfig,
        session: ModelSession,
        pairs: Sequence[ImageTextPair],
        resume_from: Path | None = None,
    ) -> Callable[[FrozenConfig], Sequence[Decision]] | None:
        """What ``resolve`` asks for the resolution.

        Args:
            config: The user's recipe.
            session: The loaded model.
            pairs: Rows of the training part.
            resume_from: The folder of a run to go on with, whose resolution is taken.

        Returns:
            See ``decide_resolution`` (with ``auto_resolution``) and ``larger_resolution``, which it calls; None where
            there is nothing to decide.
        """
        if not config.auto_resolution and not may_be_larger(config, session):
            return None
        native = session.encoder.native_resolution

        def decide(recipe: FrozenConfig) -> list[Decision]:
            if config.auto_resolution:
                where = session.device, session.precision
                return [decide_resolution(config, recipe, session.encoder, pairs, *where)]
            return larger_resolution(recipe, session, pairs)

        def choose(recipe: FrozenConfig) -> list[Decision]:
            if resume_from is not None and (resolution := recorded_resolution(resume_from)) is not None:
                why = "chosen when this run was first started"
                if not config.auto_resolution and resolution > native:
                    return at_larger(resolution, native, why)
                return [Decision("image_resolution", resolution, why)]
            where = session.device, session.precision.name
            asked = (config.to_dict(), *where, hash(tuple(pair.image_path for pair in pairs)))
            if asked != self._asked:
                self._decisions, self._asked = decide(recipe), asked
            return self._decisions

        return choose


def with_resolution(config: CLIPFinetuningConfig, resolution: int) -> CLIPFinetuningConfig:
    """The recipe of a user who had known the resolution beforehand.

    Args:
        config: The user's recipe.
        resolution: In pixels.

    Returns:
        A copy.
    """
    return config.updated(auto_resolution=False, wanted_throughput=None, image_resolution=resolution)


def recorded_resolution(folder: Path) -> int | None:
    """The resolution of the run in ``folder``, in pixels; None where nothing was trained yet.

    Args:
        folder: Of a run.

    Returns:
        Pixels.

    Raises:
        ConfigurationError: Or ``CheckpointError`` where what is recorded cannot be read.
    """
    store = CheckpointStore(folder / "checkpoints")
    if not store.all():
        return None
    if (folder / "recipe.yaml").is_file():
        return CLIPFinetuningConfig.from_yaml(folder / "recipe.yaml").image_resolution
    found = store.load_latest()
    return None if found is None else int(found[0]["identity"]["settings"]["image_resolution"])


def decide_resolution(
    config: CLIPFinetuningConfig,
    recipe: FrozenConfig,
    encoder: DualEncoder,
    pairs: Sequence[ImageTextPair],
    device: torch.device,
    precision: PrecisionDecision,
) -> Decision:
    """The decision about ``image_resolution``; see ``resolve.resolution.choose_resolution`` for the rule.

    The memory that counts is the peak of a step with ``SMALLEST_EFFICIENT`` pairs of the contrastive batch in a tower
    at once, with the images that are kept decoded. The speed is measured on the image tower alone.

    Args:
        config: The user's recipe.
        recipe: The same with batch, precision and the rest as the run will have them, whatever the resolution.
        encoder: The dual encoder.
        pairs: Rows of the training part.
        device: Where the work runs.
        precision: That of the run.

    Returns:
        With its reason.

    Raises:
        DataError: No image's size can be read, with ``strict`` where any cannot.
    """
    rule, native = encoder.resolution_rule, encoder.native_resolution
    if rule.multiple is None:
        return Decision("image_resolution", native, "the only resolution that this image tower takes")
    sizes = image_sizes(pairs, config.max_image_pixels, config.strict)
    step = encoder.resolution_step
    limits: dict[str, Any] = {}
    if (memory := _MemoryAt.of(recipe, config, encoder, len(pairs), device, precision)) is not None:
        limits = {"memory_budget": memory.counter.budget, "memory_at": memory, "memory_words": _gigabytes}
    if config.wanted_throughput is not None:

        def throughput_at(resolution: int) -> float:
            return measured_throughput(encoder, resolution, device, precision, recipe)

        limits |= {"wanted_throughput": config.wanted_throughput, "throughput_at": throughput_at}
    smallest = max(rule.smallest, int(native / 2 / step + 0.5) * step)
    chosen = choose_resolution(native, step, ShortSides.from_sizes(sizes.found), smallest=smallest, **limits)
    return Decision("image_resolution", chosen.resolution, f"{chosen.reason} ({sizes.words})")


# --- the images ---


@dataclass(frozen=True)
class ImageSizes:
    """``found``: (width, height) in pixels of the images that were looked at, of ``total``; ``unreadable``: how many
    more were looked at in vain."""

    found: list[tuple[int, int]]
    total: int
    unreadable: int

    @property
    def words(self) -> str:
        count = len(self.found)
        of = "" if count + self.unreadable == self.total else f" of {self.total:,}"
        aside = f", {self.unreadable:,} more cannot be read" if self.unreadable else ""
        return f"sizes of {count:,}{of} image{'s' * (self.total > 1)}{aside}"


def image_sizes(
    pairs: Sequence[ImageTextPair], max_pixels: int, strict: bool = False, most: int = HEADERS
) -> ImageSizes:
    """From the headers of at most ``most`` distinct images, evenly spaced among the rows; nothing is decoded, and
    what EXIF says of the orientation is left aside, since it does not change the short side.

    Args:
        pairs: Rows of the training part.
        max_pixels: More are refused, unread.
        strict: Whether one unreadable image is too many.
        most: Images that are looked at.

    Returns:
        What was found.

    Raises:
        DataError: Where none can be read, with ``strict`` where any cannot.
    """
    paths = list(dict.fromkeys(pair.image_path for pair in pairs))
    count = min(most, len(paths))
    looked_at = [paths[index * len(paths) // count] for index in range(count)]

    def size(path: Path) -> tuple[int, int] | str:
        try:
            header = image_header(path, max_pixels)
        except ImageError as error:
            return str(error)
        return header.width, header.height

    with ThreadPoolExecutor(8) as pool:  # mostly waiting for the disk
        sizes = list(pool.map(size, looked_at))
    found = [one for one in sizes if not isinstance(one, str)]
    unreadable = [one for one in sizes if isinstance(one, str)]
    if unreadable and (strict or not found):
        raise DataError(
            f"auto_resolution looked at the sizes of {count} training images, and {len(unreadable)} cannot be read: "
            f"{unreadable[0]}. Mend or remove them, or set image_resolution instead"
        )
    return ImageSizes(found, len(paths), len(unreadable))


# --- the memory ---


@dataclass(frozen=True)
class _MemoryAt:
    """Bytes that training at a resolution is going to hold at most, the margin of ``training.run_memory`` included."""

    counter: StepCounter
    micro_batch: int
    batch: int
    cache_limit: int
    cache_per_pixel: float

    @classmethod
    def of(
        cls,
        recipe: FrozenConfig,
        config: CLIPFinetuningConfig,
        encoder: DualEncoder,
        rows: int,
        device: torch.device,
        precision: PrecisionDecision,
    ) -> _MemoryAt | None:
        """None where the model's memory cannot be predicted: said in the log, and no resolution is refused for it."""
        data, optim, memory = recipe.group(DataSettings), recipe.group(OptimizerSettings), recipe.group(MemorySettings)
        counter = StepCounter(encoder, data, optim, memory, device, precision)
        try:
            counter.at(encoder.native_resolution)
        except MemoryConstraintError as error:
            log.warning("auto_resolution leaves the memory out of account: %s", error)
            return None
        batch = min(rows, contrastive_batch(recipe))
        # Statistics of the batch forbid micro-batches, unless the run may freeze them.
        live = not recipe.freeze_batch_norm and config.is_set("freeze_batch_norm")
        micro_batch = batch if live else min(SMALLEST_EFFICIENT, batch, recipe.mini_batch_size or SMALLEST_EFFICIENT)
        # A cache of augmented images keeps the margin of their crops (``data.dataset``).
        margin = 2.2 / recipe.crop_scale if recipe.augment_images else 1.0
        limit = 0 if device.type == "cuda" else recipe.image_cache_mb * 2**20
        return cls(counter, micro_batch, batch, limit, rows * 3 * margin)

    def __call__(self, resolution: int) -> float:
        cache = min(self.cache_limit, int(self.cache_per_pixel * resolution * resolution))
        return (self.counter.at(resolution).peak(self.micro_batch, self.batch) + cache) * MARGIN


def _gigabytes(amount: float) -> str:
    size = amount / GB
    return f"{size:.1f} GB" if size >= 0.1 else f"{size * 1024:.1f} MB"


# --- the speed ---


def measured_throughput(
    encoder: DualEncoder, resolution: int, device: torch.device, precision: PrecisionDecision, recipe: FrozenConfig
) -> float:
    """Images a second through the image tower as it is trained, forward and backward (forward alone where it is
    locked), ``SMALLEST_EFFICIENT`` at a time: the median of ``TIMED`` passes after a warm-up. Texts, the loss and the
    optimizer are not counted. The encoder, its mode and all random states are left as they were.

    Args:
        encoder: The dual encoder.
        resolution: In pixels.
        device: Where the work runs.
        precision: That of the run.
        recipe: Resolved.

    Returns:
        Images a second.
    """
    # What images show takes a model no time, but numbers that underflow may.
    images = torch.randn(SMALLEST_EFFICIENT, 3, resolution, resolution, generator=torch.Generator().manual_seed(0)).to(
        device
    )
    training, frozen = encoder.training, encoder.frozen_batch_norm
    encoder.frozen_batch_norm = bool(recipe.freeze_batch_norm)
    encoder.train()
    before = BeforeStep(encoder, nn.Identity(), device)
    seconds = []
    try:
        for _ in range(1 + TIMED):
            _wait(device)
            start = time.perf_counter()
            with torch.set_grad_enabled(not recipe.lock_image), precision.autocast(device):
                embeds = encoder.encode_image(images)
            if embeds.requires_grad:
                embeds.float().square().sum().backward()
            _wait(device)
            seconds.append(time.perf_counter() - start)
            encoder.zero_grad(set_to_none=True)
    finally:
        before.restore()
        encoder.frozen_batch_norm = frozen
        encoder.train(training)
    return SMALLEST_EFFICIENT / median(seconds[1:])


def _wait(device: torch.device) -> None:
    """Until an accelerator has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
