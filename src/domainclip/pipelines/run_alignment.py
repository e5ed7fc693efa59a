"""The alignment report of a training run: the model after against the model before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.settings import EvaluationSettings
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DamagedFileError
from domainclip.evaluation.alignment import AlignmentRows, Embedded, embed
from domainclip.evaluation.protocols import Embedder
from domainclip.files import write_bytes
from domainclip.inference.session import caption_pipeline
from domainclip.pipelines.run_folder import RunFolder, paths_read, refuse_among_data
from domainclip.reports.alignment_report import prepare_folder, write_alignment
from domainclip.reports.schema import AlignmentReport
from domainclip.resolve import ResolvedInference


class RunAlignment:
    """Keeps what the untrained model makes of the evaluation rows, and writes the report once there is a trained one.

    ``run_folder`` gets ``alignment_before.safetensors``, so that a run that was killed still has it. The report goes to
    ``folder``: the recipe's ``visualization_output_dir`` where that is not its default, else ``alignment`` in the run's
    folder (a run's saved recipe holds every key, so what is set cannot be told from what is the default there).

    Args:
        resolved: The recipe with its domain.
        pairs: The evaluation rows.
        split: Their name in the report.
        run_folder: Of the run.

    Raises:
        ConfigurationError: The report cannot be written.
        DataError: There are fewer than two different images or captions.
    """

    def __init__(
        self, resolved: ResolvedInference, pairs: Sequence[ImageTextPair], split: str, run_folder: Path
    ) -> None:
        config = resolved.recipe
        self.config, self.split, self.run_folder = config, split, run_folder
        self.folder = alignment_folder(config)
        if self.folder.resolve() == run_folder.resolve():
            raise ConfigurationError(
                f"visualization_output_dir={config.visualization_output_dir!r} is the run's own folder, where both "
                "write a report.md: give another, or leave it unset"
            )
        self.rows = AlignmentRows(pairs, caption_pipeline(resolved))
        refuse_among_data(self.folder, paths_read(config))
        prepare_folder(self.folder)
        self._before: Embedded | None = None

    @property
    def link(self) -> str:
        """The report as a link in a file of the run's folder: relative where it lies inside, so that the folder may
        move."""
        report = self.folder / "report.md"
        inside = report.is_relative_to(self.run_folder)
        return str(report.relative_to(self.run_folder) if inside else report.resolve())

    def remember_before(self, model: Embedder, resume: bool, rows: str = "") -> None:
        """Embed the rows with the untrained model, or read what the first start of this run kept.

        Args:
            model: Embeds with the untrained weights.
            resume: Whether kept embeddings are read, if they are of the same rows.
            rows: A digest of these with the bytes of their images.

        Raises:
            DamagedFileError: The kept file is damaged.
        """
        kept = RunFolder(self.run_folder).alignment_before
        digest = self._digest(rows)
        if resume and kept.exists():
            try:
                with safe_open(kept, "pt") as file:
                    found = file.metadata() or {}
                    # Copied, since a matrix product's last bit can depend on where its rows lie in memory.
                    images, texts = (file.get_tensor(name).clone() for name in ("images", "texts"))
            except (SafetensorError, OSError) as error:
                raise DamagedFileError(f"{kept} is damaged ({error})") from error
            if found.get("sha256") != _digest_of(images, texts):
                raise DamagedFileError(f"{kept} is damaged: its embeddings have another checksum than it names")
            if found.get("rows") == digest:
                self._before = Embedded("before", images, texts)
                return
        before = embed(self.rows, model, "before")
        images, texts = before.images.contiguous(), before.texts.contiguous()
        names = {"rows": digest, "sha256": _digest_of(images, texts)}
        write_bytes(kept, save({"images": images, "texts": texts}, metadata=names))
        self._before = before

    def write(self, model: Embedder, skipped: list[dict], top_k: int) -> AlignmentReport:
        """Write the report of the model as it is now.

        Args:
            model: Embeds with the trained weights.
            skipped: Rows that were skipped, as ``skipped.json`` lists them.
            top_k: How many answers to a query are shown.

        Returns:
            The content of ``alignment.json``.
        """
        return write_alignment(
            self.folder,
            self.rows,
            embed(self.rows, model, "after"),
            self._before,
            similarity_metric=self.config.similarity_metric,
            top_k=top_k,
            seed=self.config.seed,
            about={
                "data": self.config.data_path,
                "split": self.split,
                "skipped": skipped,
                "sources": {"model": str(self.run_folder / "model"), "compared": model_source(self.config)},
            },
        )

    def _digest(self, rows: str) -> str:
        """SHA-256 of images and captions in their order: embeddings of other rows must not pass for these."""
        content = json.dumps([[str(path) for path in self.rows.paths], self.rows.captions, rows])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _digest_of(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def alignment_folder(config: CLIPFinetuningConfig) -> Path:
    """Where a run's alignment report goes.

    Args:
        config: The recipe.

    Returns:
        ``visualization_output_dir`` where that is not its default, else ``alignment`` in ``output_dir``.
    """
    default = EvaluationSettings.model_fields["visualization_output_dir"].default
    chosen = config.visualization_output_dir
    return Path(config.output_dir) / "alignment" if chosen == default else Path(chosen)


def model_source(config: CLIPFinetuningConfig) -> str:
    """What the model was loaded from, for reports.

    Args:
        config: The recipe.

    Returns:
        The model's name, or the names of its two backbones with a plus between them.
    """
    if config.vision_model_name or config.text_model_name:
        return f"{config.vision_model_name} + {config.text_model_name}"
    return config.model_name
