"""What ``domainclip evaluate --resolutions`` does: one model at several resolutions, and on corrupted images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.evaluation.build import build_evaluator, plain_evaluator
from domainclip.evaluation.robustness import CORRUPTIONS, Condition, ConditionEvaluator
from domainclip.files import is_replaceable, write_json, writing
from domainclip.inference import ModelSession
from domainclip.models import DualEncoder
from domainclip.pipelines.condition_embedding import ConditionEmbedder
from domainclip.pipelines.embedding_cost import embedding_costs, measurement
from domainclip.pipelines.evaluate import readable_rows, rows_of_split
from domainclip.reports.plots.resolution import (
    agreement_table,
    plot_agreement,
    plot_resolutions,
    plot_robustness,
    resolution_table,
    robustness_table,
)
from domainclip.reports.schema.resolutions import AtResolution, ResolutionsReport
from domainclip.reports.schema.skipped import SkippedRow, skipped_counts
from domainclip.reports.sections import skipped_lines
from domainclip.resolve import resolve_for_inference
from domainclip.words import counted

_PLOTS = ("resolutions", "agreement", "robustness")
_WHOLE = "Large images were shown whole: what is compared here has no tiles"


@dataclass
class Resolutions:
    """``report`` is what the JSON file holds; docs/resolution.md says what its keys mean."""

    report: ResolutionsReport

    def write(self, path: Path) -> list[Path]:
        """Write the JSON file, and beside it ``<stem>_resolutions.png``, ``_agreement.png`` and ``_robustness.png``, as
        far as there is something to draw. Plots of an earlier evaluation under that name are removed.

        Args:
            path: The JSON file.

        Returns:
            The files written, the JSON file first.

        Raises:
            ConfigurationError: The place cannot be written.
        """
        path, found = Path(path), self.report
        places = plot_places(path)
        on = f"{Path(found.model).name} on {Path(found.data).name}, {counted(found.n_images, 'image')}"
        made = [path]
        with writing(f"The output {path}"):
            if not is_replaceable(path):  # a pipe has no neighbours
                write_json(path, found.to_dict())
                return made
            for place in places.values():
                place.unlink(missing_ok=True)
            write_json(path, found.to_dict())
            if len(found.resolutions) > 1:
                machine = found.measurement.device_name
                made.append(plot_resolutions(found.resolutions, places["resolutions"], on, machine))
                made.append(plot_agreement(found.resolutions, places["agreement"], on))
            if found.robustness:
                title = f"{on}, at {found.robustness.resolution} pixels"
                made.append(plot_robustness(found.robustness, places["robustness"], title))
        return made

    def print(self, console: Console | None = None) -> None:
        """Show the tables, the notes, and how many rows were skipped.

        Args:
            console: Where; standard output, if left out.
        """
        console, found = console or Console(), self.report
        images = counted(found.n_images, "image")
        console.print(resolution_table(found, f"{found.model} on {found.data}, split {found.split}, {images}"))
        console.print(found.measurement.note, markup=False, highlight=False)
        if len(found.resolutions) > 1:
            console.print(agreement_table(found.resolutions, found.native_resolution))
        if found.robustness:
            console.print(robustness_table(found.robustness))
        step = f"One image more or less is {1 / found.n_images:.4f} of the {found.n_images}."
        for line in [step, *found.notes, *skipped_lines(found.skipped_counts)]:
            console.print(line, markup=False)


def plot_places(path: Path) -> dict[str, Path]:
    """Where the plots beside a JSON file go.

    Args:
        path: The JSON file.

    Returns:
        Their files by what they show.
    """
    return {name: path.with_name(f"{path.stem}_{name}.png") for name in _PLOTS}


def check_places(path: Path) -> None:
    """Make sure that the plots beside a JSON file replace nothing but those of an earlier evaluation of that name.

    Args:
        path: The JSON file.

    Raises:
        ConfigurationError: They would.
    """
    there = [place for place in plot_places(path).values() if place.exists()]
    if there and not path.exists():
        raise ConfigurationError(
            f"{there[0]} would be replaced by a plot, and is of no evaluation in {path}: give --output another name"
        )


def check_resolutions(encoder: DualEncoder, resolutions: Sequence[int]) -> None:
    """Check that the image tower takes every resolution.

    Args:
        encoder: The dual encoder.
        resolutions: In pixels; the native one is always taken.

    Raises:
        ConfigurationError: It does not take one; the message names the nearest resolutions for the first such one.
    """
    for resolution in resolutions:
        if resolution != encoder.native_resolution and (problem := encoder.resolution_rule.problem(resolution)):
            raise ConfigurationError(f"Invalid resolution {resolution}: {problem}")


def run_resolutions(
    config: CLIPFinetuningConfig, resolutions: Sequence[int], split: str = "test", *, robustness: bool = True
) -> Resolutions:
    """Evaluate ``config.model_name`` at each of the ``resolutions``, and its own, which the others are compared with.

    Args:
        config: The recipe, which names model and data.
        resolutions: In pixels, at least one.
        split: ``train``, ``val``, ``test``, or ``all`` for every row.
        robustness: Whether also on images corrupted in each way in ``CORRUPTIONS``, at ``image_resolution`` where the
            recipe sets it and at the model's own resolution elsewhere.

    Returns:
        The figures, with what was skipped.

    Raises:
        ConfigurationError: There is no resolution, the model does not take one, or the split is unknown.
        DataError: The rows allow no evaluation.
        MemoryConstraintError: A batch does not fit.
    """
    if not resolutions:
        raise ConfigurationError("No resolution to evaluate at: give resolutions in pixels, such as 96,160")
    resolved = resolve_for_inference(config)
    rows, skipped, notes = rows_of_split(resolved, split)
    plain_evaluator(resolved, rows)  # an error now, not after the work
    session = ModelSession.from_pretrained(resolved)
    encoder = session.encoder
    native = encoder.native_resolution
    robustness_resolution = config.image_resolution if config.is_set("image_resolution") else native
    evaluated = sorted({*resolutions, native})
    check_resolutions(encoder, [*evaluated, robustness_resolution] if robustness else evaluated)
    batch_size = config.eval_batch_size
    steps = session.domain.images
    embedder = ConditionEmbedder(
        encoder,
        session.device,
        _conditions(evaluated, robustness_resolution if robustness else None),
        batch_size=batch_size,
        max_pixels=config.max_image_pixels,
        seed=config.seed,
        strict=config.strict,
        preprocessing=steps,
    )
    # Before the images: what allocators keep of all the resolutions would blur the memory of each.
    costs = embedding_costs(embedder.embed_pixels, evaluated, batch_size, session.device)
    paths = list(dict.fromkeys(pair.image_path for pair in rows))
    embeds, row_of, unreadable = embedder.embed(paths)
    rows = readable_rows(rows, lambda images: [unreadable.get(path, "") for path in images], config, split, skipped)
    evaluator = build_evaluator(session, rows)
    conditions = ConditionEvaluator(evaluator, row_of, embeds, session.engine().encode_texts)
    table = [
        AtResolution(
            resolution=resolution,
            native=resolution == native,
            metrics=conditions.metrics(Condition(resolution)),
            **asdict(costs[resolution]),
            agreement=conditions.agreement(Condition(resolution), Condition(native)),
            change=conditions.change(Condition(resolution), Condition(native)),
        )
        for resolution in evaluated
    ]
    return Resolutions(
        ResolutionsReport(
            model=config.model_name,
            data=config.data_path,
            split=split,
            n_rows=len(rows),
            n_images=len(row_of),
            primary_metric=evaluator.primary_metric,
            native_resolution=native,
            notes=notes + evaluator.notes + ([_WHOLE] if steps.tile_size else []),
            measurement=measurement(session.device, batch_size),
            resolutions=table,
            robustness=conditions.curves(robustness_resolution, config.seed) if robustness else None,
            skipped=[SkippedRow(**row) for row in skipped],
            skipped_counts=skipped_counts(skipped),
        )
    )


def _conditions(resolutions: Sequence[int], robustness_resolution: int | None) -> list[Condition]:
    found = [Condition(resolution) for resolution in resolutions]
    if robustness_resolution is not None:
        if robustness_resolution not in resolutions:
            found.append(Condition(robustness_resolution))
        for name in CORRUPTIONS:
            severities = range(1, len(CORRUPTIONS[name].levels) + 1)
            found += [Condition(robustness_resolution, name, severity) for severity in severities]
    return found
