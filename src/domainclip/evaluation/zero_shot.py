"""Classification by the nearest class description: zero-shot where the model was not trained on the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.errors import DataError
from domainclip.evaluation.protocols import CallableEvaluator, Embedder, EvaluationResult, LabelledPair
from domainclip.evaluation.shared import encode_images
from domainclip.inference.prompts import DEFAULT_TEMPLATES, class_prompts, classifier_weights
from domainclip.metrics.classification import classification_metrics, zero_shot_logits
from domainclip.words import counted


class ZeroShotEvaluator(CallableEvaluator):
    """Classifies images by the nearest class description, with no classifier trained.

    Classes come from ``prompts`` (class → sentences), else ``class_names`` with ``templates``, else the labels that
    occur; ``names_of`` gives the names that describe a class in its label's place. Rows without a label, or with one
    that is no class, are left out and counted. An image that several rows show under the same label counts once.

    Raises:
        DataError: No row or fewer than two classes are left.
    """

    name = "classification"
    primary_metric = "acc1"
    greater_is_better = True

    def __init__(
        self,
        pairs: Sequence[LabelledPair],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        class_names: Sequence[str] | None = None,
        prompts: Mapping[str, Sequence[str]] | None = None,
        names_of: Callable[[str], Sequence[str]] | None = None,
    ) -> None:
        if prompts is None:
            labels = class_names if class_names is not None else known_labels(pairs)
            prompts = class_prompts(labels, templates, names_of=names_of) if labels else {}
        self.prompts = prompts
        self.labels = list(prompts)
        if len(self.labels) < 2:
            raise DataError(
                f"Classification needs at least two classes, found {len(self.labels)}"
                f"{f' ({self.labels[0]!r})' if self.labels else ''}: give labelled rows of two classes or "
                "more"
            )
        index_of = {label: index for index, label in enumerate(self.labels)}
        self.n_unlabelled = sum(pair.label is None for pair in pairs)
        self.n_outside_classes = sum(pair.label is not None and pair.label not in index_of for pair in pairs)
        items = dict.fromkeys((pair.image_path, pair.label) for pair in pairs if pair.label in index_of)
        if not items:
            raise DataError(
                f"None of {counted(len(pairs), 'row')} has a label among the classes {', '.join(self.labels[:10])}: "
                "check the label column and the class names"
            )
        self.paths = [path for path, _ in items]
        self.targets = [index_of[label] for _, label in items if label is not None]
        self.groups = of_images(pairs, self.paths, "group")
        self.disciplines = of_images(pairs, self.paths, "discipline")

    def evaluate(self, embed: Embedder) -> EvaluationResult:
        """The figures of this embedder.

        Args:
            embed: The model.

        Returns:
            Its figures and their details.
        """
        return self.result(self.similarities(embed)[0])

    def similarities(self, embed: Embedder) -> tuple[Float[Tensor, "images classes"], Int[Tensor, " images"]]:
        """Cosines of ``self.paths`` to every class, and the true class numbers: what a calibration is made from.

        Args:
            embed: The model.

        Returns:
            Cosines and true class numbers.
        """
        weights = classifier_weights(embed.encode_texts, self.prompts)
        return zero_shot_logits(encode_images(embed, self.paths), weights), torch.tensor(self.targets)

    def result(self, logits: Float[Tensor, "images classes"]) -> EvaluationResult:
        """The result from the similarities of ``self.paths`` to every class.

        Args:
            logits: A row for each of ``paths``.

        Returns:
            The result.
        """
        found = classification_metrics(logits, np.array(self.targets))
        metrics = {name: value for name, value in found.items() if isinstance(value, float)}
        counts = {"n_classified": len(self.paths), "n_classes": len(self.labels)}
        support = found["support"]
        details = {
            "labels": self.labels,
            "per_class_recall": dict(zip(self.labels, found["per_class_recall"], strict=True)),
            "support": dict(zip(self.labels, support, strict=True)),
            "confusion": found["confusion"],
            "image_paths": [str(path) for path in self.paths],
            "targets": [self.labels[number] for number in self.targets],
            "predictions": [self.labels[number] for number in found["predictions"]],
            "groups": self.groups,
            # What always answering the most frequent class would score: the line a real model must pass.
            "majority_fraction": max(support) / sum(support),
            "n_unlabelled": self.n_unlabelled,
            "n_outside_classes": self.n_outside_classes,
            "prompts_per_class": max(len(sentences) for sentences in self.prompts.values()),
        }
        records = EvaluationResult.of(metrics, n_units=len(self.paths)).records | EvaluationResult.of(counts).records
        return EvaluationResult(records, {"classification": details})


def known_labels(pairs: Sequence[LabelledPair]) -> list[str]:
    """The different labels that occur, sorted.

    Args:
        pairs: The rows.

    Returns:
        The labels.
    """
    return sorted({pair.label for pair in pairs if pair.label is not None})


def of_images(pairs: Sequence[LabelledPair], paths: Sequence[Path], name: str) -> list[str | None]:
    """What the rows say of each image (its group, its discipline); None where they do not.

    Args:
        pairs: The rows.
        paths: The images.
        name: The rows' attribute.

    Returns:
        One for each image.
    """
    found: dict[Path, str | None] = {}
    for pair in pairs:
        if found.get(pair.image_path) is None:
            found[pair.image_path] = getattr(pair, name, None)
    return [found[path] for path in paths]
