"""Some errors of a model, as the images they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from domainclip.errors import ImageError
from domainclip.reports.plots.style import ORANGE, save, short_label

Reader = Callable[[Path], np.ndarray]
"""A path to uint8 ``[height, width, 3]``; raises ``ImageError``."""

_MOST = 6
_COLUMNS = 3


@dataclass(frozen=True)
class ErrorExample:
    """An image, what it is, and what the model made of it.

    Args:
        image_path: The image.
        truth: Its class, or a caption of its own.
        answer: The class it was taken for, or the rank of its own caption.
    """

    image_path: Path
    truth: str
    answer: str


def chosen_errors(details: Mapping[str, Any], most: int = _MOST) -> list[ErrorExample]:
    """Errors by a fixed rule: one of each class in turn, the class of the lowest recall first; without classes the
    images whose own caption comes last.

    Args:
        details: Those of an evaluation, with its single answers.
        most: How many at most.

    Returns:
        The examples; none where nothing is wrong.
    """
    if (found := details.get("classification")) and "predictions" in found:
        wrong: dict[str, list[ErrorExample]] = {}
        for path, target, predicted in zip(found["image_paths"], found["targets"], found["predictions"], strict=True):
            if predicted != target:
                of_class = wrong.setdefault(target, [])
                of_class.append(ErrorExample(Path(path), target, f"taken for {predicted}"))
        recalls = found["per_class_recall"]
        order = sorted(wrong, key=lambda label: (recalls[label] or 0.0, label))
        in_turn = [(turn, place, each) for place, label in enumerate(order) for turn, each in enumerate(wrong[label])]
        return [each for _, _, each in sorted(in_turn, key=lambda item: item[:2])[:most]]
    if (found := details.get("retrieval")) and "i2t_ranks" in found:
        own = dict(reversed(found["hits"]))
        ranks = sorted(enumerate(found["i2t_ranks"]), key=lambda item: (-item[1], item[0]))
        return [
            ErrorExample(
                Path(found["image_paths"][image]),
                found["captions"][own[image]],
                f"rank {rank} of {len(found['captions'])}",
            )
            for image, rank in ranks[:most]
            if rank > 1
        ]
    return []


def plot_errors(examples: list[ErrorExample], read: Reader, path: Path) -> bool:
    """The images side by side, each with its class and what it was taken for.

    Args:
        examples: What to show.
        read: Gives an image as it is shown; one that it cannot read is left out.
        path: The PNG to write.

    Returns:
        Whether there was an image to show.
    """
    shown = []
    for example in examples:
        try:
            shown.append((example, read(example.image_path)))
        except ImageError:  # the evaluation has read it; that it cannot be shown costs an example, not the report
            continue
    if not shown:
        return False
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(2.5 * columns, 3.2 * rows), layout=ConstrainedLayoutEngine(h_pad=0.12))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (example, pixels) in zip(axes, shown, strict=False):
        axis.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 100 else "antialiased")
        axis.set_title(short_label(example.truth, 44, 24), fontsize=9, fontweight="bold")
        axis.set_xlabel(short_label(example.answer, 44, 26), fontsize=9, color=ORANGE)
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    save(figure, path)
    return True
