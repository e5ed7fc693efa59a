"""What the projections of frozen towers read for the images and texts of a data set, computed once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from domainclip.data.dataset import CLIPDataset
from domainclip.devices.out_of_memory import ShrinkingBatches
from domainclip.errors import ImageError
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.projections import (
    ProjectionInputs,
    TowerProjection,
    join_inputs,
    projection_inputs,
    tower_projection,
)
from domainclip.models.towers import TowerName
from domainclip.training.probe.progress import SAVE_SECONDS, ProbeProgress
from domainclip.waiting import Progress


@dataclass
class ImageFeatures:
    """``inputs``: rows in order. ``rows``: their numbers in the data set. ``skipped``: images that cannot be read, with
    the reason."""

    inputs: ProjectionInputs
    rows: list[int]
    skipped: dict[str, str] = field(default_factory=dict)


class FeatureReader:
    """Reads features of the towers in evaluation mode: no dropout, batch norm's stored statistics, which stay as they
    are.

    Args:
        encoder: Whose towers they are.
        device: Where they are.
        autocast: Makes the context in which they run.
        batch_size: Images or texts at a time.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[object]],
        batch_size: int,
    ) -> None:
        self.encoder, self.device, self.autocast, self.batch_size = encoder, device, autocast, batch_size
        self._image_batches = ShrinkingBatches("images", device)
        self._text_batches = ShrinkingBatches("texts", device)
        self.progress: ProbeProgress | None = None
        self._parts = 0

    def begin(self, progress: ProbeProgress | None) -> None:
        """Read from the start: what was read before a kill comes from ``progress``, in the same order of calls.

        Args:
            progress: Where it is kept, if it is.
        """
        self.progress, self._parts = progress, 0

    def _restored(self) -> tuple[str, dict[str, Any]]:
        """The name of the next part, and what was saved of it."""
        name, self._parts = f"features-{self._parts}", self._parts + 1
        return name, (self.progress.load(name) if self.progress is not None else None) or {}

    def _keep(self, name: str, done: int, total: int, part: Callable[[], dict[str, Any]], began: float) -> None:
        """Save a part where that is due. One that is complete and took long is saved too: the next one begins."""
        if self.progress is None or not done:
            return
        finished = done >= total and time.monotonic() - began >= SAVE_SECONDS / 10
        if finished or self.progress.is_due():
            self.progress.save(name, {"done": done, **part()})

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        training = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad(), self.autocast():
                yield
        finally:
            self.encoder.train(training)

    def images(self, data: CLIPDataset, rows: Sequence[int]) -> ImageFeatures:
        """Features of the images of rows, as evaluation shows them.

        Args:
            data: The data set.
            rows: Which of its rows.

        Returns:
            Features of the images that can be read.

        Raises:
            ImageError: An image cannot be read, and the data set is ``strict``.
        """
        projection, spec = tower_projection(self.encoder, "image"), data.image_transform.spec

        def read(row: int) -> Tensor | ImageError:
            try:
                return data.clean(row)
            except ImageError as error:
                if data.config.strict:
                    raise
                return error

        name, saved = self._restored()
        kept: list[int] = saved.get("rows", [])
        skipped: dict[str, str] = dict(saved.get("skipped", {}))
        parts = [_inputs(projection, saved["images"], self.device)] if saved.get("images") else []

        def so_far() -> dict[str, Any]:
            content = _content(join_inputs(parts)) if parts else None
            return {"rows": list(kept), "skipped": dict(skipped), "images": content}

        done, began = saved.get("done", 0), time.monotonic()
        reading = Progress(len(rows), "Reading features of images", done)
        with ThreadPoolExecutor() as pool, self._frozen(), reading:
            for start in range(done, len(rows), self.batch_size):
                part = rows[start : start + self.batch_size]
                good = []
                for row, found in zip(part, pool.map(read, part), strict=True):
                    if isinstance(found, ImageError):
                        skipped[str(data.pairs[row].image_path)] = str(found)
                    else:
                        kept.append(row)
                        good.append(found)
                if good:
                    pixel_values = spec.normalise(torch.stack(good).to(self.device)).to(self.encoder.dtype)
                    parts += self._image_batches(
                        len(pixel_values),
                        self.batch_size,
                        lambda some, values=pixel_values: projection_inputs(  # type: ignore[misc]
                            projection, self.encoder.encode_image, values[some]
                        ),
                    )
                self._keep(name, start + len(part), len(rows), so_far, began)
                reading.at(start + len(part))
        return ImageFeatures(join_inputs(parts) if parts else self.nothing("image"), kept, skipped)

    def nothing(self, tower: TowerName) -> ProjectionInputs:
        """The features of no rows.

        Args:
            tower: ``image`` or ``text``.

        Returns:
            No rows.
        """
        return ProjectionInputs(tower_projection(self.encoder, tower), torch.empty(0, 0), None)

    def texts(self, token_ids: Sequence[Sequence[int]]) -> ProjectionInputs:
        """Features of texts.

        Args:
            token_ids: Of each text.

        Returns:
            What the text projection reads, in the order of the texts.
        """
        projection, processor = tower_projection(self.encoder, "text"), self.encoder.processor
        if not token_ids:
            return self.nothing("text")
        order = sorted(range(len(token_ids)), key=lambda number: -len(token_ids[number]))  # little padding
        name, saved = self._restored()
        parts = [_inputs(projection, saved["texts"], self.device)] if saved else []
        done, began = saved.get("done", 0), time.monotonic()

        def so_far() -> dict[str, Any]:
            return {"texts": _content(join_inputs(parts))}

        with self._frozen(), Progress(len(order), "Reading features of texts", done) as reading:
            for start in range(done, len(order), self.batch_size):
                part = [list(token_ids[number]) for number in order[start : start + self.batch_size]]
                length = processor.max_length
                if processor.text_padding != "fixed":  # on MPS a few lengths only: it keeps memory for each shape
                    multiple = 16 if self.device.type == "mps" else 1
                    length = min(length, -(-len(part[0]) // multiple) * multiple)
                input_ids, mask = processor.pad(part, length)
                parts += self._text_batches(
                    len(part),
                    self.batch_size,
                    lambda some, ids=input_ids, mask=mask: projection_inputs(  # type: ignore[misc]
                        projection, self.encoder.encode_text, ids[some].to(self.device), mask[some].to(self.device)
                    ),
                )
                self._keep(name, start + len(part), len(order), so_far, began)
                reading.at(start + len(part))
        joined = join_inputs(parts)
        back = torch.empty(len(order), dtype=torch.long)
        back[order] = torch.arange(len(order))
        residual = None if joined.residual is None else joined.residual[back]
        return ProjectionInputs(projection, joined.features[back], residual)


def _content(inputs: ProjectionInputs) -> dict[str, Tensor | None]:
    return {"features": inputs.features, "residual": inputs.residual}


def _inputs(projection: TowerProjection, content: dict[str, Tensor | None], device: torch.device) -> ProjectionInputs:
    features, residual = content["features"], content["residual"]
    assert features is not None
    return ProjectionInputs(projection, features.to(device), None if residual is None else residual.to(device))
