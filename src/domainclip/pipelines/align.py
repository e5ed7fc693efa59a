"""What ``domainclip align report`` does: how well one model, or one against another, matches images and captions."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

from domainclip.config import CLIPFinetuningConfig
from domainclip.evaluation.alignment import AlignmentRows, Embedded, embed
from domainclip.inference import ModelSession
from domainclip.inference.session import caption_pipeline
from domainclip.models.source import find_model
from domainclip.pipelines.evaluate import readable_rows, rows_of_split
from domainclip.pipelines.output_lock import locked_output
from domainclip.pipelines.run_alignment import model_source
from domainclip.pipelines.run_folder import paths_read, refuse_among_data
from domainclip.reports.alignment_report import prepare_folder, write_alignment
from domainclip.reports.schema import AlignmentReport
from domainclip.resolve import resolve_for_inference

log = logging.getLogger(__name__)


def run_alignment(
    config: CLIPFinetuningConfig,
    split: str = "test",
    output: Path = Path("outputs/alignment"),
    *,
    compare: str | None = None,
    top_k: int | None = None,
) -> AlignmentReport:
    """Write the alignment report of ``config.model_name`` on a split of ``config.data_path`` into ``output``.

    Args:
        config: The recipe, which names model and data.
        split: Of the data, cut as a training run would cut it.
        output: The report's folder.
        compare: A second model, evaluated on the same rows.
        top_k: How many answers to a query are shown; ``config.retrieval_top_k``, if left out.

    Returns:
        The content of ``alignment.json``.

    Raises:
        ConfigurationError: The split is unknown, or the folder cannot be used.
        DataError: The split has no rows, or fewer than two different images or captions.
    """
    with locked_output(output, "The folder", log.warning):
        return _write_report(config, split, output, compare, top_k)


def _write_report(
    config: CLIPFinetuningConfig, split: str, output: Path, compare: str | None, top_k: int | None
) -> AlignmentReport:
    resolved = resolve_for_inference(config)
    refuse_among_data(output, paths_read(config))
    pairs, skipped, notes = rows_of_split(resolved, split)
    AlignmentRows(pairs)  # too few to compare is said before a model is loaded
    prepare_folder(output)
    if compare is not None:
        find_model(compare)  # a slip in its name shows now, not after the first model's work
    session = ModelSession.from_pretrained(resolved)
    engine = session.engine()
    pairs = readable_rows(pairs, engine.readable, config, split, skipped)
    rows = AlignmentRows(pairs, caption_pipeline(resolved))
    source = model_source(config)
    name, other_name = short_names(source, compare)
    model, other = embed(rows, engine, name), None
    if compare is not None:
        del session, engine  # two models need not be in memory at once
        gc.collect()
        other = _embed_with(config.updated(**model_keys(compare)), rows, other_name)
    return write_alignment(
        output,
        rows,
        model,
        other,
        similarity_metric=config.similarity_metric,
        top_k=top_k or config.retrieval_top_k,
        seed=config.seed,
        about={
            "data": config.data_path,
            "split": split,
            "notes": notes,
            "skipped": skipped,
            "sources": {"model": source, **({"compared": compare} if compare else {})},
        },
    )


def model_keys(name: str) -> dict[str, str | None]:
    """The recipe's keys that say which model to load, for one that is not joined from two backbones.

    Args:
        name: The folder of a saved model, or a name on the Hugging Face Hub.

    Returns:
        Values by key, None for the two backbones.
    """
    return {"model_name": name, "vision_model_name": None, "text_model_name": None}


def short_names(model: str, compare: str | None) -> tuple[str, str]:
    """Names for tables and plots: the last part of a path, or as much as tells the two apart.

    Args:
        model: Path or name of the model.
        compare: Path or name of the second one; None without one.

    Returns:
        The two names; the second is empty without a second model, and ends in "(again)" for the same one.
    """
    if compare is None:
        return Path(model).name or model, ""
    first, second = Path(model).parts, Path(compare).parts
    for length in range(1, max(len(first), len(second)) + 1):
        name, other = "/".join(first[-length:]), "/".join(second[-length:])
        if name and other and name != other:
            return name, other
    return model, f"{compare} (again)"


def _embed_with(config: CLIPFinetuningConfig, rows: AlignmentRows, name: str) -> Embedded:
    return embed(rows, ModelSession.from_pretrained(resolve_for_inference(config)).engine(), name)
