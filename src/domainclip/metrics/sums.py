"""The figures of classification and retrieval as sums over images, and those of them that models are compared by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import csr_array, hstack

from domainclip.errors import ConfigurationError, DataError, ShapeError
from domainclip.metrics.bootstrap import Draws, Sums, divided, mean_draws, numbered
from domainclip.metrics.calibration import BINS, confidence_bins
from domainclip.metrics.class_scores import ClassScores
from domainclip.metrics.label_rankings import LABEL_METRICS
from domainclip.metrics.metric import METRICS, OWN_SECTION

CLASSIFICATION_METRICS = ("acc1", "mean_per_class_recall", "macro_f1")
RETRIEVAL_METRICS = ("mean_R@1", "i2t_R@1", "t2i_R@1")
COMPARED_METRICS = CLASSIFICATION_METRICS + RETRIEVAL_METRICS
"""Names that ``unit_sums`` takes; all lie in 0…1 and more is better."""

_MOST = 10  # R@10 of ten candidates is 1 whatever the model does


def class_sums(
    targets: Int[np.ndarray, " images"],
    predictions: Int[np.ndarray, " images"],
    labels: Sequence[str],
    names: Sequence[str],
    *,
    in_five: Float[np.ndarray, " images"] | None = None,
    gaps: Float[np.ndarray, "images bins"] | None = None,
    ordinals: Int[np.ndarray, " classes"] | None = None,
) -> Sums:
    """Figures of predicted classes.

    Args:
        targets: True class numbers.
        predictions: Predicted ones.
        labels: The classes' names.
        names: Which figures: ``acc1``, ``acc5``, ``mean_per_class_recall`` (recall averaged over the classes that have
            rows), ``macro_f1`` (over the same classes: 2·TP / (2·TP + FN + FP)), ``ece``, ``quadratic_kappa`` (Cohen
            1968), and ``recall`` of each class.
        in_five: 1 where the true class is among the first five; for ``acc5``.
        gaps: Right or wrong less the confidence, in the column of its bin; for ``ece``.
        ordinals: Each class's place in the order, from 0; for ``quadratic_kappa``.

    Returns:
        Their sums over images.
    """
    n, rows = len(labels), np.arange(len(targets))
    right, ones = (targets == predictions).astype(np.float64), np.ones(len(targets))
    places = np.zeros(n) if ordinals is None else ordinals.astype(np.float64)
    present = np.isin(np.arange(n), targets)

    def of_class(values: np.ndarray, classes: np.ndarray) -> csr_array:
        return csr_array((values, (rows, classes)), shape=(len(rows), n))

    # Only what these figures need: two models' answers differ where these do.
    of_classes, by_name = {"recall", "mean_per_class_recall", "macro_f1", "quadratic_kappa"}, set(names)
    blocks: dict[str, Any] = {"total": ones[:, None]}
    if "acc1" in by_name:
        blocks["acc1"] = right[:, None]
    if "acc5" in by_name and in_five is not None:
        blocks["acc5"] = in_five[:, None]
    if "ece" in by_name and gaps is not None:
        blocks["ece"] = gaps
    if "quadratic_kappa" in by_name:
        blocks["observed"] = np.square(places[targets] - places[predictions])[:, None]
    if by_name & of_classes:
        blocks |= {"hits": of_class(right, targets), "support": of_class(ones, targets)}
    if by_name & {"macro_f1", "quadratic_kappa"}:
        blocks["predicted"] = of_class(ones, predictions)
    ends = np.cumsum([block.shape[1] for block in blocks.values()])
    columns = {name: slice(end - block.shape[1], end) for (name, block), end in zip(blocks.items(), ends, strict=True)}

    def figures(totals: np.ndarray) -> Draws:
        of = {name: totals[..., place] for name, place in columns.items()}
        total = of["total"][..., 0]
        draws: Draws = {}
        for name in names:
            if name in ("acc1", "acc5"):
                draws[name, None] = of[name][..., 0] / total
            elif name == "ece":
                draws[name, None] = np.abs(of[name]).sum(axis=-1) / total
            elif name == "quadratic_kappa":
                # Σ over pairs of classes of distance² × support × predicted: zero where all is one class.
                square = [of["support"] @ places**k * (of["predicted"] @ places ** (2 - k)) for k in (0, 1, 2)]
                by_chance = (square[0] - 2 * square[1] + square[2]) / total
                draws[name, None] = 1 - divided(of["observed"][..., 0], by_chance)
            elif name == "macro_f1":
                # The two parts of the denominator are what there is and what was said.
                f1 = divided(2 * of["hits"], np.where(of["support"] > 0, of["support"] + of["predicted"], 0))
                draws |= mean_draws(name, np.moveaxis(f1, -1, 0), present)
            else:
                recall = np.moveaxis(divided(of["hits"], of["support"]), -1, 0)
                if name == "recall":
                    draws |= {(name, label): recall[index] for index, label in enumerate(labels)}
                else:
                    draws |= mean_draws(name, recall, present)
        return draws

    return Sums(hstack([csr_array(block) for block in blocks.values()], format="csr"), figures)


def sums_of_scores(
    scores: ClassScores, names: Sequence[str], ordinals: Int[np.ndarray, " classes"] | None = None
) -> Sums:
    """``class_sums`` of what a classification gives.

    Args:
        scores: Log-probabilities, true and predicted classes.
        names: Which figures.
        ordinals: Each class's place in the order.

    Returns:
        Their sums over images.
    """
    own = np.take_along_axis(scores.log_probabilities, scores.targets[:, None], axis=1)
    # Ties count against the model: the class itself is in the sum, which makes it the rank.
    in_five = ((scores.log_probabilities >= own).sum(axis=1) <= 5).astype(np.float64)
    gaps = None
    if "ece" in names:
        confidence = np.exp(scores.log_probabilities).max(axis=1)
        gaps = np.zeros((len(scores.targets), BINS))
        gaps[np.arange(len(gaps)), confidence_bins(confidence)] = (scores.targets == scores.predictions) - confidence
    return class_sums(
        scores.targets, scores.predictions, scores.labels, names, in_five=in_five, gaps=gaps, ordinals=ordinals
    )


def retrieval_sums(
    i2t_ranks: Sequence[int] | Int[np.ndarray, " images"],
    t2i_ranks: Sequence[int] | Int[np.ndarray, " captions"],
    hits: Int[np.ndarray, "hits 2"],
    names: Sequence[str],
) -> Sums | None:
    """Figures of resampled images: the candidates stay, the queries are drawn anew. Images are what is resampled; a
    caption counts as often as the images it was written for do on average, since captions without their patient or
    specimen are not drawn by themselves.

    Args:
        i2t_ranks: Rank of each image's best hit, from 1.
        t2i_ranks: The same of each caption.
        hits: Image and caption that belong together.
        names: Which figures: ``i2t_R@K``, ``i2t_MRR``, the same for ``t2i``, and ``mean_R@K``. An R@10 that ten
            candidates or fewer make 1 whatever the model does is left out.

    Returns:
        Their sums over images, None where nothing is left.

    Raises:
        ShapeError: The hits do not give each caption an image.
    """
    ranks = {"i2t": np.asarray(i2t_ranks), "t2i": np.asarray(t2i_ranks)}
    n_images, n_captions = len(ranks["i2t"]), len(ranks["t2i"])
    image, caption = np.asarray(hits).T
    per_caption = np.bincount(caption, minlength=n_captions)
    if (per_caption == 0).any() or len(per_caption) != n_captions or image.max() >= n_images:
        raise ShapeError(
            f"Batch size mismatch: the hits do not give each of {n_captions} captions one of {n_images} images"
        )
    candidates = {"i2t": n_captions, "t2i": n_images}
    part = 1 / per_caption[caption]

    def sides(name: str) -> list[np.ndarray]:
        found = ranks[name[:3]]
        scores = 1 / found if name.endswith("MRR") else (found <= int(name.rpartition("@")[2])).astype(np.float64)
        if name.startswith("i2t"):
            return [scores, np.ones(n_images)]
        return [np.bincount(image, weights, n_images) for weights in (scores[caption] * part, part)]

    kept = [name for name in names if not (name.endswith(f"R@{_MOST}") and candidates[name[:3]] <= _MOST)]
    columns: list[np.ndarray] = []
    places: dict[str, list[int]] = {}
    for name in kept:
        directed = [name.replace("mean", side) for side in ("i2t", "t2i")] if name.startswith("mean") else [name]
        places[name] = [len(columns) + 2 * index for index in range(len(directed))]
        columns += [column for each in directed for column in sides(each)]
    if not columns:
        return None

    def figures(totals: np.ndarray) -> Draws:
        return {
            (name, None): np.mean([divided(totals[..., at], totals[..., at + 1]) for at in found], axis=0)
            for name, found in places.items()
        }

    return Sums(np.stack(columns, axis=1), figures)


def check_metric(name: str) -> None:
    """Whether models can be compared by a metric.

    Args:
        name: The metric.

    Raises:
        ConfigurationError: It is no function of sums over images, none of labels' rankings, nor a plugin's.
    """
    known = (*COMPARED_METRICS, *LABEL_METRICS)
    if name not in known and not (name in METRICS and METRICS[name].section == OWN_SECTION):
        raise ConfigurationError(
            f"Invalid metric {name!r} for a comparison: choose one of {', '.join(known)}, or leave it out for acc1, "
            "mAP where images have several labels, and mean_R@1 where there are no classes"
        )


def unit_sums(name: str, details: Mapping[str, Any]) -> Sums:
    """The metric ``name`` from an evaluation's ``details``.

    Args:
        name: One of ``COMPARED_METRICS``.
        details: What an evaluation keeps beside its figures.

    Returns:
        Its sums by unit. The unit of an image is its group, or the image itself where it has none. A caption's own
        query counts for the units of its images, in equal parts where it has several.

    Raises:
        ConfigurationError: The name is unknown.
        DataError: The evaluation has no such part.
    """
    if name not in COMPARED_METRICS:
        check_metric(name)
        raise DataError(f"{name} is no metric of classes or of retrieval")
    part = "classification" if name in CLASSIFICATION_METRICS else "retrieval"
    found = details.get(part)
    if found is None:
        reasons = [note for note in details.get("notes", ()) if part in note]
        raise DataError(f"No {name} here. " + (". ".join(reasons) or f"The rows allow no {part}"))
    # Units without any image in this part (rows without a label) are not units of this metric.
    units = numbered(_own_units(found))
    if part == "classification":
        index_of = {label: index for index, label in enumerate(found["labels"])}
        truth, predicted = (np.array([index_of[label] for label in found[key]]) for key in ("targets", "predictions"))
        return class_sums(truth, predicted, found["labels"], (name,)).only(name).by_unit(units)
    if "hits" not in found:  # an evaluation from before these were written
        raise DataError(f"{name} needs the hits: which image and which caption belong together")
    sums = retrieval_sums(found["i2t_ranks"], found["t2i_ranks"], np.array(found["hits"]), (name,))
    assert sums is not None
    return sums.by_unit(units)


def has_groups(found: Mapping[str, Any]) -> bool:
    """Whether some group of ``details["classification"]`` or ``details["retrieval"]`` has several images.

    Args:
        found: That part of the details.

    Returns:
        Whether there is one.
    """
    images = dict.fromkeys(zip(found["image_paths"], found.get("groups") or (), strict=False))
    return any(n > 1 for group, n in Counter(group for _, group in images).items() if group is not None)


def _own_units(found: Mapping[str, Any]) -> list[Hashable]:
    paths = found["image_paths"]
    groups = found.get("groups") or [None] * len(paths)
    return [("image", path) if group is None else ("group", group) for path, group in zip(paths, groups, strict=True)]
