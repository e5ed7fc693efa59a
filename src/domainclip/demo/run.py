"""The demonstration: a small CLIP trained from scratch on images that come with scikit-image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.demo.images import build_demo_data
from domainclip.files import replaced_directory
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder
from domainclip.pipelines import RunOutcome, run_training
from domainclip.pipelines.run_folder import OutputFolder, RunFolder

RECIPE: dict[str, Any] = {
    "domain": "scientific",
    "learning_rate": 1e-3,  # twenty times a fine-tuning rate: these weights are random
    "batch_size": 128,
    "num_epochs": 30,
    "weight_decay": 0.1,
    "mixed_precision": False,  # a model this small gains nothing from it
    "augment_text": True,
}
"""What differs from the defaults, because nothing is pretrained here."""


def run_demo(folder: Path, overrides: Mapping[str, Any] | None = None, console: Console | None = None) -> RunOutcome:
    """Make the images, make a random CLIP of about a million parameters, train it, report. No network.

    ``folder`` then holds ``data/``, ``initial-model/`` and everything a run of ``domainclip train`` leaves; an earlier
    demonstration in it is replaced.

    Args:
        folder: Where everything goes.
        overrides: Recipe keys that differ from ``RECIPE``.
        console: Where the course is shown; standard error, if left out.

    Returns:
        What ``run_training`` returns.

    Raises:
        DataError: ``folder/data`` holds anything but an earlier build.
        MissingExtraError: scikit-image is not installed.
    """
    console = console or Console(stderr=True)
    folder = Path(folder)
    model = OutputFolder(folder, ("initial-model",), "demonstration")
    model.claim(overwrite=True)
    RunFolder(folder).claim(overwrite=True)
    data = build_demo_data(folder / "data")
    captions = [pair.caption for pair in DatasetLoader.from_csv(data / "train.csv")]
    encoder = make_tiny_clip(
        seed=0,
        image_size=64,
        patch_size=8,
        width=96,
        layers=4,
        heads=4,
        projection_dim=128,
        text_length=32,
        vocab_size=600,
        corpus=captions,
    )
    model.begin()
    with replaced_directory(folder / "initial-model") as temporary:
        save_encoder(encoder, temporary)
    model.end()
    millions = sum(parameter.numel() for parameter in encoder.parameters()) / 1e6
    console.print(
        f"A CLIP of {millions:.1f} M parameters with random weights, trained from scratch. With weights from a hub "
        "(--model vit-b-32) the same steps fine-tune."
    )
    config = CLIPFinetuningConfig(
        **{
            **RECIPE,
            "model_name": str(folder / "initial-model"),
            "data_path": str(data),
            "output_dir": str(folder),
            **(overrides or {}),
        }
    )
    outcome = run_training(config, overwrite=True, console=console)
    console.print(
        "Next, with your own images (a CSV with the columns image_path and caption, or a folder per class):\n"
        "  domainclip data check YOUR_DATA\n"
        "  domainclip train --data YOUR_DATA --model vit-b-32 --output outputs/mine"
    )
    return outcome
