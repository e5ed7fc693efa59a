"""The graphs of one loaded model: found where they are current, converted where they are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from tokenizers import Tokenizer

from domainclip.config import ModelSettings
from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import BackendError, CLIPFinetuningError
from domainclip.files import remove_leftovers
from domainclip.inference.backends.encoder import BACKENDS, Precision
from domainclip.inference.backends.golden import GoldenBatch
from domainclip.inference.backends.graphs import FOLDER, GraphRecord, StoredGraph, fingerprint_of, model_folder
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.inference.backends.torch_encoder import fixed_shapes, golden_batch, towers_of
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.models.io import weights_digest
from domainclip.models.library import first_line, quiet_transformers

_MADE_WITH = ("torch", "transformers", "openvino", "nncf", "onnx", "onnxruntime")


class ModelGraphs:
    """What back ends have, or can have, of a loaded model.

    Args:
        encoder: The model, whose weights are as they were loaded.
        settings: The recipe's, which say where it is from.
        spec: The resolution, and how images are normalised.
        device: Where the model is.
        say: Tells the user what takes time.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        settings: ModelSettings,
        spec: ImageSpec,
        device: torch.device,
        say: Callable[[str], object],
    ) -> None:
        self.encoder, self.spec, self.device = encoder, spec, device
        self.folder = model_folder(settings)
        self._say = say

    @cached_property
    def fingerprint(self) -> str:
        """Of the model as it is now."""
        return fingerprint_of(self.folder) if self.folder is not None else weights_digest(self.encoder)

    @cached_property
    def golden(self) -> GoldenBatch:
        """The batch saved beside the model, or a new one where there is none, or one of other weights."""
        saved = GoldenBatch.read(self.folder) if self.folder is not None else None
        if saved and (saved.fingerprint, saved.resolution) == (self.fingerprint, self.spec.resolution):
            return saved
        return golden_batch(self.encoder, self.device, self.fingerprint, self.spec)

    def torch(self, precision: Precision = "fp32") -> FixedShapes:
        """The model without a graph.

        Args:
            precision: ``fp32`` or ``bf16``.

        Returns:
            What encodes by it.
        """
        return fixed_shapes(self.encoder, self.spec, self.device, precision)

    def find(self, name: str, precision: Precision) -> tuple[Path, GraphRecord] | None:
        """Look for a graph that serves a precision.

        Args:
            name: Of a back end.
            precision: To compute in.

        Returns:
            Its folder and record; None where there is none of the present model at this resolution.
        """
        found = self._stored(name, BACKENDS[name].graphs[precision]).find()
        return found if found is not None and found[1].resolution == self.spec.resolution else None

    def load(self, name: str, precision: Precision) -> tuple[FixedShapes, GoldenBatch]:
        """A back end over the graph of the model, which is made first where there is none.

        Args:
            name: Of a back end.
            precision: To compute in.

        Returns:
            What encodes by it, and what it must give.

        Raises:
            BackendError: The model cannot be converted, or its graph be written.
            MissingExtraError: A package is missing that converts.
        """
        folder, record = self.find(name, precision) or self._convert(name, BACKENDS[name].graphs[precision])
        shapes = FixedShapes(BACKENDS[name].load(folder, precision), record.lengths, record.pad_token_id)
        return shapes, GoldenBatch.read(folder) or self.golden

    def _stored(self, name: str, precision: Precision) -> StoredGraph:
        return StoredGraph(name, precision, self.folder, self.fingerprint if self.folder is None else None)

    def _convert(self, name: str, precision: Precision) -> tuple[Path, GraphRecord]:
        asked = name if precision == "fp32" else f"{name}:{precision}"
        self._say(f"Converting the model for the back end {asked}, once")
        start = time.perf_counter()
        if self.folder is not None:
            remove_leftovers(self.folder / FOLDER)
        towers = towers_of(self.encoder, self.spec)

        def convert(folder: Path) -> None:
            try:
                with quiet_transformers():
                    BACKENDS[name].convert(towers, folder, precision)
            except (CLIPFinetuningError, OSError):
                raise
            except Exception as error:  # whatever a library says of a model that it does not know
                raise BackendError(f"{asked} cannot convert this model: {first_line(error)}") from error

        processor, lengths = self.encoder.processor, self.torch().lengths
        record = GraphRecord(
            backend=name,
            precision=precision,
            fingerprint=self.fingerprint,
            resolution=self.spec.resolution,
            text_limit=processor.max_length,
            lengths=lengths,
            pad_token_id=processor.pad_token_id,
            made_with=_versions(),
        )
        found = self._stored(name, precision).write(record, self.golden, stored_tokenizer(processor), convert)
        self._say(f"Converted in {time.perf_counter() - start:.1f} seconds, into {found[0]}")
        return found


def stored_tokenizer(processor: EncoderProcessor) -> str | None:
    """A model's tokenizer for those who do without torch, with the truncation that ``EncoderProcessor.token_ids`` asks
    for.

    Args:
        processor: The model's.

    Returns:
        As the library ``tokenizers`` writes it; None for a tokenizer that is none of its own.
    """
    inner = getattr(processor.tokenizer, "backend_tokenizer", None)
    if inner is None:
        return None
    own = Tokenizer.from_str(inner.to_str())
    own.no_padding()
    own.enable_truncation(processor.max_length, direction=processor.tokenizer.truncation_side)
    return own.to_str()


def _versions() -> dict[str, str]:
    found = {}
    for package in _MADE_WITH:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
