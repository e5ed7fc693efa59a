"""What a model card says of a model's use without this package: what is prepared otherwise, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass

from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.text_preprocessing import TextPreprocessing

_IN_TRAINING_ALONE = {
    "allowed_turns",
    "rotation_degrees",
    "stain_jitter",
    "spectral_jitter",
    "synonym_fraction",
    "section_dropout",
    "glossary",
}


@dataclass(frozen=True)
class PlainUse:
    """A model prepared by plain ``transformers``, beside this package's preparation.

    Attributes:
        image_steps: What the domain does to images before the resize, as ``key = value``.
        caption_steps: What it does to captions before the tokenizer.
        image_cosine: The mean cosine of an image's two embeddings; None where there was none.
        images: How many images that is the mean of.
        not_taken: Images that Pillow does not open, or that ``transformers`` brings to a shape the model does not take.
        caption_cosine: As for images.
        captions: How many captions that is the mean of.
    """

    image_steps: tuple[str, ...]
    caption_steps: tuple[str, ...]
    image_cosine: float | None
    images: int
    not_taken: int
    caption_cosine: float | None
    captions: int


def steps_of(settings: ImagePreprocessing | TextPreprocessing) -> tuple[str, ...]:
    """The steps that are on and are no augmentation.

    Args:
        settings: The domain's, of images or of texts.

    Returns:
        ``key = value`` of each key that has another value than its default.
    """
    default = type(settings)()
    changed = {
        key: getattr(settings, key)
        for key in type(settings).model_fields
        if key not in _IN_TRAINING_ALONE and getattr(settings, key) != getattr(default, key)
    }
    return tuple(f"{key} = {value}" for key, value in changed.items())
