"""What ``domainclip evaluate --resolutions`` does: one model at several picture sides, and on damaged pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.records import PairList
from domainclip.errors import ConfigurationError, DataError
from domainclip.evaluation.robustness import CORRUPTIONS, Condition, ConditionJudge
from domainclip.files import write_json
from domainclip.models import DualEncoder
from domainclip.pipelines.captions import domain_evaluator
from domainclip.pipelines.condition_embedding import ConditionEmbedder
from domainclip.pipelines.controller import CLIPFinetuningController
from domainclip.pipelines.embedding_cost import embedding_costs, measurement
from domainclip.pipelines.evaluate import rows_of_split
from domainclip.reports.plots.resolution import (
    agreement_table,
    plot_agreement,
    plot_resolutions,
    plot_robustness,
    resolution_table,
    robustness_table,
)
from domainclip.reports.report import jsonable

_PLOTS = ("resolutions", "agreement", "robustness")
_WHOLE = "Large pictures were shown whole: what is compared here has no tiles"


@dataclass
class ResolutionReport:
    """``figures`` is what the JSON file holds; docs/resolution.md says what its keys mean."""

    figures: dict[str, Any]
    set_aside: list[dict] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return jsonable({**self.figures, "set_aside": self.set_aside})

    def write(self, path: Path) -> list[Path]:
        """The JSON file, and beside it ``<stem>_resolutions.png``, ``_agreement.png`` and ``_robustness.png``, as far
        as there is something to draw. Plots of an earlier evaluation under that name are removed.

        Raises ``ConfigurationError`` for a place that cannot be written.
        """
        path, found = Path(path), self.to_dict()
        places = {name: path.with_name(f"{path.stem}_{name}.png") for name in _PLOTS}
        on = f"{Path(found['model']).name} on {Path(found['data']).name}, {found['n_pictures']} pictures"
        made = [path]
        try:
            for place in places.values():
                place.unlink(missing_ok=True)
            write_json(path, found)
            if len(found["resolutions"]) > 1:
                machine = found["measurement"]["device_name"]
                made.append(plot_resolutions(found["resolutions"], places["resolutions"], on, machine))
                made.append(plot_agreement(found["resolutions"], places["agreement"], on))
            if found["robustness"]:
                title = f"{on}, at {found['robustness']['resolution']} pixels"
                made.append(plot_robustness(found["robustness"], places["robustness"], title))
        except OSError as error:
            raise ConfigurationError(f"--output {path} cannot be written: {error.strerror or error}") from None
        return made

    def print(self, console: Console | None = None) -> None:
        console = console or Console()
        found = self.to_dict()
        on = f"{found['model']} on {found['data']}, split {found['split']}, {found['n_pictures']} pictures"
        console.print(resolution_table(found, on))
        console.print(found["measurement"]["note"], markup=False, highlight=False)
        if len(found["resolutions"]) > 1:
            console.print(agreement_table(found))
        if found["robustness"]:
            console.print(robustness_table(found["robustness"]))
        step = f"One picture more or less is {1 / found['n_pictures']:.4f} of the {found['n_pictures']}."
        for line in [step, *found["notes"], *(f"Set aside: {row['reason']}" for row in self.set_aside[:5])]:
            console.print(line, markup=False)
        if len(self.set_aside) > 5:
            console.print(f"… and {len(self.set_aside) - 5} more")


def parse_resolutions(text: str) -> list[int]:
    """Sides from "96,128,160", ascending, each once. Raises ``ConfigurationError`` for anything else."""
    sides = set()
    for part in text.split(","):
        if not (part.strip().isascii() and part.strip().isdecimal()) or int(part) < 1:
            raise ConfigurationError(
                f"Invalid resolution {part.strip()!r} in --resolutions {text!r}: give sides in pixels, such as 96,160"
            )
        sides.add(int(part))
    return sorted(sides)


def check_output(path: Path) -> None:
    """Says before the work that its figures could not be written. Raises ``ConfigurationError``."""
    if path.is_dir():
        raise ConfigurationError(f"--output {path} is a directory: give the name of a JSON file")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        raise ConfigurationError(f"--output {path} cannot be written: {there} is not a folder that you may write to")


def check_sides(encoder: DualEncoder, sides: Sequence[int]) -> None:
    """Raises ``ConfigurationError`` naming the nearest sides for the first that the picture tower does not take."""
    for side in sides:
        if side != encoder.native_resolution and (problem := encoder.side_rule.problem(side)):
            raise ConfigurationError(f"Invalid resolution {side}: {problem}")


def run_resolutions(
    config: CLIPFinetuningConfig, resolutions: Sequence[int], split: str = "test", *, robustness: bool = True
) -> ResolutionReport:
    """Evaluate ``config.model_name`` at each of the ``resolutions``, and at its own, which the others are compared
    with; with ``robustness`` also on pictures damaged in each way in ``CORRUPTIONS``, at ``image_resolution`` where the
    recipe sets it and at the model's own side elsewhere.

    Raises ``ConfigurationError`` for no resolution, one that the model does not take, or an unknown split,
    ``DataError`` for rows that allow no evaluation, ``MemoryConstraintError`` where a batch does not fit.
    """
    if not resolutions:
        raise ConfigurationError("No resolution to evaluate at: give sides in pixels, such as 96,160")
    rows, set_aside, notes = rows_of_split(config, split)
    domain_evaluator(config, rows)  # an error now, not after the work
    controller = CLIPFinetuningController(config)
    controller.setup()
    encoder = controller.model
    assert encoder is not None
    native = encoder.native_resolution
    damaged_side = config.image_resolution if config.is_set("image_resolution") else native
    sides = sorted({*resolutions, native})
    check_sides(encoder, [*sides, damaged_side] if robustness else sides)
    batch_size = config.eval_batch_size
    steps = controller.config.picture_steps()
    embedder = ConditionEmbedder(
        encoder,
        controller.device,
        _conditions(sides, damaged_side if robustness else None),
        batch_size=batch_size,
        max_pixels=config.max_image_pixels,
        seed=config.seed,
        strict=config.strict,
        preprocessing=steps,
    )
    # Before the pictures: what allocators keep of all the sides would blur the memory of each.
    costs = embedding_costs(embedder.embed_pixels, sides, batch_size, controller.device)
    paths = list(dict.fromkeys(pair.image_path for pair in rows))
    embeds, row_of, problems = embedder.embed(paths, controller.console)
    rows = _kept(rows, problems, split, config, set_aside)
    evaluator = controller.evaluator(rows)
    judge = ConditionJudge(evaluator, row_of, embeds, controller.engine().encode_texts)
    table = [
        {
            "resolution": side,
            "native": side == native,
            "metrics": judge.metrics(Condition(side)),
            "pictures_per_second": costs[side].pictures_per_second,
            "seconds_per_batch": costs[side].seconds_per_batch,
            "peak_memory_mb": costs[side].peak_memory_mb,
            "agreement": judge.agreement(Condition(side), Condition(native)),
            "change": judge.change(Condition(side), Condition(native)),
        }
        for side in sides
    ]
    figures = {
        "model": config.model_name,
        "data": config.data_path,
        "split": split,
        "n_rows": len(rows),
        "n_pictures": len(row_of),
        "primary_metric": evaluator.primary_metric,
        "native_resolution": native,
        "notes": notes + evaluator.notes + ([_WHOLE] if steps.tile_side else []),
        "measurement": measurement(controller.device, batch_size),
        "resolutions": table,
        "robustness": judge.curves(damaged_side, config.seed) if robustness else None,
    }
    return ResolutionReport(figures, set_aside)


def _conditions(sides: Sequence[int], damaged_side: int | None) -> list[Condition]:
    found = [Condition(side) for side in sides]
    if damaged_side is not None:
        if damaged_side not in sides:
            found.append(Condition(damaged_side))
        for name in CORRUPTIONS:
            severities = range(1, len(CORRUPTIONS[name].levels) + 1)
            found += [Condition(damaged_side, name, severity) for severity in severities]
    return found


def _kept(
    rows: PairList, problems: Mapping[Path, str], split: str, config: CLIPFinetuningConfig, set_aside: list[dict]
) -> PairList:
    """The rows whose pictures could be read; the others are noted. Raises ``DataError`` when none could."""
    for pair in rows:
        if pair.image_path in problems:
            reason = problems[pair.image_path]
            set_aside.append({"split": split, "image_path": str(pair.image_path), "reason": reason})
    kept = PairList([pair for pair in rows if pair.image_path not in problems], rows.source)
    if not kept:
        raise DataError(f"No picture of the {split} split of {config.data_path} can be read: {set_aside[-1]['reason']}")
    return kept
