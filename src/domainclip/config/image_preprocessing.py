"""What is done to a domain's images before a model sees them. Every step is off unless it is asked for (a DICOM is
shown as it says itself).

The steps without chance run in the order they stand here, in training and in evaluation alike; those with chance
(``rotation_degrees``, ``stain_jitter``, ``spectral_jitter``) in training only. ``data.domain`` carries them out.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from domainclip.config.base import Settings

Turn = Literal["horizontal", "vertical", "quarter_turns"]


class ImagePreprocessing(Settings):
    """The ``images`` section of a domain. Raises ``ConfigurationError`` for an unknown key or a bad value."""

    page: Literal["first", "middle", "mean", "error"] = Field(
        "first",
        title="Page",
        description="Which page or frame of a multi-page TIFF or multi-frame DICOM is the image: the first, the "
        "middle one, the mean of all; error refuses such files.",
    )
    dicom_window: Literal["file", "off"] = Field(
        "file",
        title="DICOM window",
        description="file: the grey levels that a DICOM file itself says are to be seen (VOI window or table), which "
        "is what its standard asks of every viewer; off, or where it says none: as deep_scaling says.",
    )
    window_center: float | None = Field(
        None,
        description="Level of a window for every DICOM, after rescaling (Hounsfield units in CT); overrules the "
        "file's.",
    )
    window_width: float | None = Field(
        None, ge=1, description="Width of that window, in the same units (lung: centre -600, width 1500)."
    )
    deep_scaling: Literal["full_range", "percentiles", "per_channel"] = Field(
        "full_range",
        title="Deep scaling",
        description="How more than 8 bits become grey levels: the whole range of the 8, 10, 12, 14 or 16 bits that the "
        "image uses (its own for fractions and DICOM), between its percentiles, or between those of each channel.",
    )
    channel_scaling: bool = Field(
        False, description="Stretch each channel between its percentiles, in images of 8 bits too."
    )
    percentiles: tuple[float, float] = Field(
        (0.5, 99.5), description="Lower and upper percentile that become black and white, each in [0, 100]."
    )
    crop_border: Literal["off", "dark", "uniform"] = Field(
        "off",
        title="Border crop",
        description="Cut away a border that shows nothing: dark, or of one brightness whatever it is.",
    )
    border_threshold: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="Brightness (dark) or difference from the corners' (uniform) that still counts "
        "as border, as a fraction of white.",
    )
    illumination: Literal["off", "divide", "grey_world"] = Field(
        "off",
        title="Illumination",
        description="divide: by the blurred image, which evens out uneven light; grey_world: bring the mean of each "
        "channel to grey, which takes away a colour cast.",
    )
    illumination_scale: float = Field(
        0.25, gt=0, le=1, description="Blur of divide (its standard deviation), as a fraction of the shorter side."
    )
    clahe_clip_limit: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Contrast-limited adaptive histogram equalisation with this clip limit (0.01 is mild); null: none.",
    )
    clahe_tiles: int = Field(8, ge=1, le=64, description="Tiles of that equalisation along each side.")
    tile_size: int | None = Field(
        None,
        ge=32,
        le=16384,
        description="Cut images with a longer side than this into square tiles, in pixels: "
        "training shows one of them at a time, and an embedding is the mean of all; null: images stay whole. Where "
        "other steps are on, images above 16 million pixels are shrunk to these first.",
    )
    tile_overlap: float = Field(0.1, ge=0, le=0.9, description="Least overlap of neighbouring tiles, as a fraction.")
    allowed_turns: list[Turn] | None = Field(
        None,
        description="What augmentation may do at most: mirror (horizontal, vertical), quarter_turns; null: the "
        "recipe's own keys decide. An empty list forbids all three, as where left and right are findings.",
    )
    rotation_degrees: float = Field(
        0.0, ge=0, le=180, description="Largest random rotation either way in training, in degrees."
    )
    stain_jitter: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="Strength of random changes to the amounts of haematoxylin, eosin and DAB in training.",
    )
    spectral_jitter: float = Field(
        0.0, ge=0, le=0.5, description="Strength of random gains of each colour channel in training, as a fraction."
    )

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles must rise within 0 … 100 (percentiles=[{low:g}, {high:g}])")
        if (self.window_center is None) != (self.window_width is None):
            given, missing = ("center", "width") if self.window_width is None else ("width", "center")
            raise ValueError(f"window_{given} without window_{missing}: a window has both. Set window_{missing} too")
        return self

    @property
    def changes_images(self) -> bool:
        """Whether a step without chance is on for images of 8 bits and one page."""
        return bool(
            self.channel_scaling or self.crop_border != "off" or self.illumination != "off" or self.clahe_clip_limit
        )
