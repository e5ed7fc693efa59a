"""What ``domainclip data preview`` does: a sheet of what becomes of images on their way to the model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from domainclip.config import CLIPFinetuningConfig, DataSettings, FrozenConfig
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.key_facts import facts_by_key
from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.data.checks.contact_sheet import SheetRow, contact_sheet
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.reader import image_header, read_image
from domainclip.data.images.transforms import ImageTransform, view_rng
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError, ImageError
from domainclip.files import write_bytes, writing
from domainclip.inference.session import caption_pipeline
from domainclip.models.loading import load_processor
from domainclip.pipelines.evaluate import rows_of_split
from domainclip.resolve import ModelFacts, ResolvedInference, ResolvedRun, resolve, resolve_for_inference
from domainclip.resolve.facts import data_facts

VIEWS = 3


@dataclass
class Preview:
    """The sheet as PNG, how many images it shows, and what is wrong with those that were to be shown and cannot."""

    sheet: bytes
    images: int
    skipped: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the sheet.

        Args:
            path: A PNG file, replaced if it is there.

        Raises:
            ConfigurationError: The file cannot be written.
        """
        with writing(f"The output {path}"):
            write_bytes(path, self.sheet)


def preview(config: CLIPFinetuningConfig, split: str = "train", count: int = 6) -> Preview:
    """For ``count`` images of a split: the image, what the steps without chance make of it, the views that the
    first epochs of training would show of it, and the caption before and after its own steps.

    Images are of all labels in turn. Sizes are the model's where the recipe names one, and CLIP's (224 pixels)
    otherwise.

    Args:
        config: The recipe, which names the data and, if any, the model.
        split: ``train``, ``val``, ``test``, or ``all`` for every row.
        count: Images to show, at least 1; fewer are shown where the split has fewer that can be read.

    Returns:
        The sheet, with what is wrong with images that were skipped.

    Raises:
        ConfigurationError: The split is unknown, or ``count`` is not positive.
        DataError: No image can be read; with ``strict``, one of them cannot.
    """
    if count < 1:
        raise ConfigurationError(f"Number of images must be positive (count={count})")
    inference = resolve_for_inference(config)
    rows, *_ = rows_of_split(inference, split)
    spec, processor = ImageSpec(), None
    if config.is_set("model_name"):
        processor = load_processor(config.model_name)
        spec = ImageSpec.from_processor(processor.image_processor)
    resolved = _resolved(inference, spec, rows)
    recipe = resolved.recipe
    spec = spec.at(recipe.image_resolution)
    transform = ImageTransform(recipe, augment=recipe.augment_images, spec=spec, steps=resolved.domain.images)
    pipeline = caption_pipeline(resolved, processor)
    shown: list[SheetRow] = []
    skipped: list[str] = []
    for number in _in_turn(rows):
        if len(shown) == count:
            break
        try:
            shown.append(_row(rows[number], number, recipe, transform, pipeline))
        except ImageError as error:
            skipped.append(str(error))
            if config.strict or len(skipped) == 10 * count:
                break
    if not shown or (config.strict and skipped):
        raise DataError(f"No image to preview in the {split} split of {config.data_path}: {skipped[0]}")
    columns = ["as stored", "after the steps", *(f"training view {number + 1}" for number in range(VIEWS))]
    title = f"{Path(config.data_path).name}, {split}: domain {resolved.domain.name}"
    return Preview(contact_sheet(columns, shown, title, _notes(recipe, transform)), len(shown), skipped)


def _resolved(inference: ResolvedInference, spec: ImageSpec, rows: Sequence[ImageTextPair]) -> ResolvedRun:
    """The recipe with what the domain and the captions decide. Of the model only its resolution matters to images, so
    the other facts are those of a CLIP."""
    config = inference.recipe
    resolution = config.image_resolution if config.is_set("image_resolution") else spec.resolution
    facts = ModelFacts(resolution, 77, False, "transformer", "transformer", 0.07)
    config = config.updated(auto_resolution=False, wanted_throughput=None)
    return resolve(config, facts, data_facts(rows), domain=inference.domain)


def _in_turn(rows: Sequence[ImageTextPair]) -> list[int]:
    """Row numbers: the first of each label, the second of each, and so on; without labels, evenly spread."""
    seen: dict[str, int] = defaultdict(int)
    ranks = []
    for number, pair in enumerate(rows):
        key = pair.label or ""
        ranks.append((seen[key], number))
        seen[key] += 1
    if len(seen) > 1:
        return [number for _, number in sorted(ranks)]
    step = max(1, len(rows) // 97)  # prime to most regular orders
    return [number for start in range(step) for number in range(start, len(rows), step)]


def _row(
    pair: ImageTextPair, number: int, recipe: FrozenConfig, transform: ImageTransform, captions: CaptionPipeline
) -> SheetRow:
    header = image_header(pair.image_path, recipe.max_image_pixels)
    stored = read_image(pair.image_path, recipe.max_image_pixels, at_least=512)
    raw = transform.read(pair.image_path, recipe.max_image_pixels)
    pipeline = transform.pipeline
    treated = pipeline.apply(raw, transform.target)
    tiles = pipeline.boxes(treated.shape[0], treated.shape[1], transform.target) if pipeline.tiles(raw) else []
    base = transform.base(raw)
    views = [transform.finish(base, view_rng(recipe.seed, epoch, number)) for epoch in range(VIEWS)]
    arrays = [np.ascontiguousarray(view.permute(1, 2, 0).numpy()) for view in views]
    facts = f"{pair.image_path.name}: {header.format} {header.width}×{header.height} {header.mode}"
    if header.frames > 1:
        facts += f", {header.frames} pages (stored: the first; the steps: {pipeline.settings.page})"
    facts += f" → {treated.shape[1]}×{treated.shape[0]}" if treated.shape != stored.shape else ""
    facts += f", {len(tiles)} tiles" if len(tiles) else ""
    caption = f"[{pair.label}] {pair.caption}" if pair.label else pair.caption
    shown_caption = captions(pair.caption)
    return SheetRow(
        [stored, treated, *arrays], caption, facts, shown_caption if shown_caption != pair.caption else "", tiles
    )


def _notes(recipe: FrozenConfig, transform: ImageTransform) -> list[str]:
    default = ImagePreprocessing()
    steps = transform.steps
    plain = steps.model_dump(mode="json")
    chosen = {key: plain[key] for key in plain if getattr(steps, key) != getattr(default, key)}
    step_values = ", ".join(f"{key} = {_shown(value)}" for key, value in chosen.items()) or "none"
    drawn = [name for name, facts in facts_by_key(DataSettings) if facts.section == "augmentation"]
    keys = [name for name in drawn if not name.startswith("augment_")]
    augmentation = ", ".join(f"{key} = {_shown(getattr(recipe, key))}" for key in keys)
    views = f"Training views ({transform.resolution} pixels): "
    return [f"Steps: {step_values}", views + (augmentation if recipe.augment_images else "augment_images = false")]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
