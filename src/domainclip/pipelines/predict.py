"""What ``domainclip predict`` does: the class of each image, with probabilities."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.checks.contact_sheet import GridCell, image_grid
from domainclip.data.images.store import ImageStore
from domainclip.data.records import Columns
from domainclip.data.sources.images_given import ImageRow, ImageRows
from domainclip.errors import DataError
from domainclip.files import csv_text, write_bytes, write_text
from domainclip.inference import ModelSession
from domainclip.inference.classifier import Prediction
from domainclip.resolve import resolve_for_inference
from domainclip.waiting import Progress
from domainclip.words import counted, shortened_paths, some_of

SHOWN_ROWS = 20
"""Predictions that the terminal shows; files have all."""
SHEET_IMAGES = 100
FORMATS = (".csv", ".jsonl")
"""What predictions are written as, by the file's suffix."""


@dataclass(frozen=True)
class ClassifiedRow:
    """One row with what the model says of its image: a prediction, or the ``problem`` why there is none."""

    row: ImageRow
    prediction: Prediction | None
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        Returns:
            ``image``, ``label`` (None: not sure enough, or unreadable), ``probability``, ``probabilities``, ``error``,
            and ``true_label`` where the data say it.
        """
        found = self.prediction
        return {
            "image": self.row.path,
            "label": found.label if found else None,
            "probability": found.probability if found else None,
            "probabilities": found.probabilities if found else {},
            "error": self.problem or None,
            **({"true_label": self.row.label} if self.row.label else {}),
        }


@dataclass
class Predictions:
    """The predictions of one call.

    Attributes:
        model: Its name or folder.
        classes: Those that were chosen from.
        threshold: The least probability of a label.
        rows: One for each image, in the order in which they were given.
        notes: What was guessed or left out when the images were collected.
    """

    model: str
    classes: tuple[str, ...]
    threshold: float
    rows: list[ClassifiedRow]
    notes: list[str] = field(default_factory=list)

    @property
    def unreadable(self) -> list[ClassifiedRow]:
        """The rows without a prediction."""
        return [row for row in self.rows if row.prediction is None]

    @property
    def accuracy(self) -> tuple[int, int]:
        """How many are right, of those whose true class the data say and that is one of the classes."""
        known = [row for row in self.rows if row.prediction is not None and row.row.label in self.classes]
        right = [row for row in known if row.prediction is not None and row.prediction.label == row.row.label]
        return len(right), len(known)

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` gives.

        Returns:
            Plain values.
        """
        right, known = self.accuracy
        return {
            "model": self.model,
            "classes": list(self.classes),
            "threshold": self.threshold,
            "accuracy": right / known if known else None,
            "notes": self.notes,
            "predictions": [row.to_dict() for row in self.rows],
        }

    def write(self, path: Path) -> None:
        """Write all predictions, whole or not at all.

        Args:
            path: A ``.csv`` file, with the probability of each class in a column of its own, or a ``.jsonl`` one.

        Raises:
            OSError: It cannot be written.
        """
        if path.suffix.lower() == ".jsonl":
            write_text(path, "".join(f"{json.dumps(row.to_dict(), ensure_ascii=False)}\n" for row in self.rows))
            return
        cells = []
        for row in self.rows:
            found = row.prediction.probabilities if row.prediction else {}
            values = row.to_dict()
            first = (values["image"], values["label"], values["probability"], values["error"], row.row.label or None)
            cells.append((*first, *(found.get(name) for name in self.classes)))
        write_text(path, csv_text(("image", "label", "probability", "error", "true_label", *self.classes), cells))

    def write_sheet(self, path: Path, max_pixels: int) -> None:
        """Draw the first images with their predictions.

        Args:
            path: A PNG file.
            max_pixels: Of the images, as when they were read.

        Raises:
            OSError: It cannot be written.
        """
        cells = []
        for row in self.rows[:SHEET_IMAGES]:
            found = row.prediction
            said = "cannot be read" if found is None else f"{found.probability:.2f} {found.label or 'not sure'}"
            cells.append(GridCell.of(row.row.path, said, max_pixels))
        title = f"{self.model}: {len(cells)} of {counted(len(self.rows), 'image')}"
        write_bytes(path, image_grid(cells, title))

    def print(self, console: Console | None = None) -> None:
        """Show the first predictions, and how many there are of each class.

        Args:
            console: Where; standard output, if left out.
        """
        console = console or Console()
        shown = self.rows[:SHOWN_ROWS]
        folder, names = shortened_paths([row.row.path for row in shown])
        table = Table(title=escape(f"{self.model} on {folder}" if folder else self.model))
        table.add_column("image", overflow="fold")
        table.add_column("class", overflow="fold")
        table.add_column("probability", justify="right")
        for name, row in zip(names, shown, strict=True):
            found = row.prediction
            if found is None:
                table.add_row(escape(name), escape(row.problem), "")
            else:
                table.add_row(escape(name), escape(found.label or "not sure"), f"{found.probability:.3f}")
        console.print(table)
        if len(self.rows) > SHOWN_ROWS:
            console.print(f"{SHOWN_ROWS} of {len(self.rows):,}; --output FILE.csv and --json give all", highlight=False)
            counts = Counter(row.prediction.label or "not sure" for row in self.rows if row.prediction)
            listing = ", ".join(f"{label} {count:,}" for label, count in counts.most_common())
            console.print(f"Predicted: {listing}", markup=False, highlight=False)
        for line in self.remarks():
            console.print(line, markup=False, highlight=False)

    def remarks(self) -> list[str]:
        """What there is to say beside the predictions themselves.

        Returns:
            Sentences: the accuracy where it is known, what could not be read, and notes.
        """
        right, known = self.accuracy
        lines = [f"Right: {right:,} of {known:,} whose class the data say ({right / known:.4f})"] if known else []
        bad = self.unreadable
        if bad:
            lines.append(f"Unreadable: {some_of(len(bad), len(self.rows), 'image')}, first {bad[0].problem}")
        return [*lines, *(f"Data: {note}" for note in self.notes)]


def run_prediction(
    config: CLIPFinetuningConfig,
    images: Iterable[str | Path],
    labels: Sequence[str] | None = None,
    top_k: int | None = None,
    threshold: float = 0.0,
) -> Predictions:
    """Classify images.

    Args:
        config: The recipe, which names the model and, for tables, their columns.
        images: Images, folders, tables; see ``ImageRows.of``.
        labels: The classes; those of the run that the model is from, if left out.
        top_k: How many classes are named for each image; all, if left out.
        threshold: In 0…1: an image whose likeliest class is less probable gets no label.

    Returns:
        A row for each image.

    Raises:
        ConfigurationError: There are no classes, or a value is out of range.
        DataError: There is no image, or none can be read; with ``strict``, one of them cannot.
        ModelLoadError: The model cannot be had.
    """
    found = ImageRows.of(images, columns_of(config))
    session = ModelSession.from_pretrained(resolve_for_inference(config))
    classifier = session.classifier(labels)
    classifier.check(top_k, threshold)
    there = [index for index, row in enumerate(found.rows) if not row.problem]
    rows = [ClassifiedRow(row, None, row.problem) for row in found.rows]
    engine = session.engine(images=ImageStore(0, config.max_image_pixels), backend=session.backend)
    batches = engine.encode_files([Path(found.rows[index].path) for index in there])
    at = 0
    with Progress(len(there), "Classifying images") as progress:
        for batch in batches:
            predictions = iter(classifier(batch.embeddings, top_k, threshold))
            for problem in batch.problems:
                row = found.rows[there[at]]
                rows[there[at]] = ClassifiedRow(row, None if problem else next(predictions), problem)
                at += 1
            progress.at(at)
    result = Predictions(config.model_name, classifier.classes, threshold, rows, found.notes)
    bad = result.unreadable
    if bad and (config.strict or len(bad) == len(rows)):
        raise DataError(f"{some_of(len(bad), len(rows), 'image')} cannot be read: {bad[0].problem}")
    return result


def columns_of(config: CLIPFinetuningConfig) -> Columns:
    """How a recipe says that tables are read.

    Args:
        config: The recipe.

    Returns:
        The names of columns.
    """
    return Columns(config.image_col, config.caption_col, config.label_col, image_root=config.image_root)
