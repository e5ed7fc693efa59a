"""Register an objective of your own and name it in a recipe, without touching the trainer."""

import tempfile
from pathlib import Path

from domainclip import CLIPFinetuningConfig, run_training
from domainclip.config import LossSettings
from domainclip.demo.drawn import draw_demo_data
from domainclip.losses import LOSSES, CLIPContrastiveLoss, MultiPositiveContrastiveLoss


class ImageToTextOnly(MultiPositiveContrastiveLoss):
    """Half of the symmetric loss: each image among all texts."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        return {**output, "loss": output["image_to_text_loss"]}


@LOSSES.register("image_to_text_only")
def build(settings: LossSettings) -> CLIPContrastiveLoss:
    return ImageToTextOnly.from_settings(settings)


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    config = CLIPFinetuningConfig(
        model_name="tiny",
        data_path=draw_demo_data(folder / "data"),
        output_dir=folder / "run",
        loss_type="image_to_text_only",
        max_steps=4,
    )
    print("training loss", run_training(config).report.training.train_loss)


if __name__ == "__main__":
    main()
