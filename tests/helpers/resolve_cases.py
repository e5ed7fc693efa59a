"""Facts of models and data for decisions."""

from __future__ import annotations

from dataclasses import replace

from domainclip.resolve import DataFacts, ModelFacts

CLIP = ModelFacts(
    native_resolution=224,
    text_length=77,
    fixed_text_length=False,
    image_tower_kind="transformer",
    text_tower_kind="transformer",
    temperature=0.01,
)
SIGLIP = replace(CLIP, text_length=64, fixed_text_length=True)
STARTER = replace(CLIP, native_resolution=160, image_tower_kind="convolutional")
PLAIN = DataFacts(
    train_rows=8000,
    repeated_caption_fraction=0.0,
    labelled_fraction=0.0,
    classes=0,
    names_left_right=False,
    names_heights=False,
    cores=8,
)
