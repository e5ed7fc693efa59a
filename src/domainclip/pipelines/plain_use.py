"""How far plain ``transformers`` prepares images and captions as a trained model is used to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from domainclip.data.records import ImageTextPair
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.reports.plain_use import PlainUse, steps_of

ROWS = 16
"""How many are looked at."""


def plain_use(session: ModelSession, engine: EmbeddingEngine, pairs: Sequence[ImageTextPair]) -> PlainUse:
    """Measure on some rows what a domain's steps change, and whatever else differs.

    Args:
        session: The trained model with its domain.
        engine: Embeds as this package does.
        pairs: Rows with readable images; the first of them that differ are taken.

    Returns:
        The steps, and the mean cosine of embeddings with and without them.
    """
    paths = list(dict.fromkeys(pair.image_path for pair in pairs))[:ROWS]
    captions = list(dict.fromkeys(pair.caption for pair in pairs))[:ROWS]
    image_cosine = caption_cosine = None
    with torch.no_grad(), torch.autocast(session.device.type, enabled=False):
        found = [(path, row) for path in paths if (row := _plain_image(session, path)) is not None]
        if found:
            ours = engine.encode_images([path for path, _ in found])
            image_cosine = _mean_cosine(ours, torch.cat([row for _, row in found]))
        if captions:
            caption_cosine = _mean_cosine(engine.encode_texts(captions), _plain_texts(session, captions))
    return PlainUse(
        image_steps=steps_of(session.domain.images),
        caption_steps=steps_of(session.domain.texts),
        image_cosine=image_cosine,
        images=len(found),
        not_taken=len(paths) - len(found),
        caption_cosine=caption_cosine,
        captions=len(captions),
    )


def _plain_image(session: ModelSession, path: Path) -> Float[Tensor, "1 dim"] | None:
    """None for a format that Pillow has not, and for a shape that the model does not take."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        pixels = session.processor.image_processor(images=rgb, return_tensors="pt")["pixel_values"]
        return session.encoder.encode_image(pixels.to(session.device)).float().cpu()
    except (OSError, ValueError, Image.DecompressionBombError):  # among them the package's own of shapes
        return None


def _plain_texts(session: ModelSession, captions: list[str]) -> Float[Tensor, "captions dim"]:
    """By the tokenizer's own limit, padded as the card's code pads."""
    padding = "max_length" if session.processor.text_padding == "fixed" else True
    tokens = session.processor.tokenizer(captions, padding=padding, truncation=True, return_tensors="pt")
    mask = tokens.get("attention_mask", torch.ones_like(tokens["input_ids"]))
    return session.encoder.encode_text(tokens["input_ids"].to(session.device), mask.to(session.device)).float().cpu()


def _mean_cosine(one: Float[Tensor, "rows dim"], other: Float[Tensor, "rows dim"]) -> float:
    return float(torch.cosine_similarity(one.double(), other.double(), dim=1).mean())
