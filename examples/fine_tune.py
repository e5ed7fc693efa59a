"""Fine-tune on a table of images and captions, and read the figures. Runs in seconds with a random model.

With a real model: ``python examples/fine_tune.py openai/clip-vit-base-patch32 path/to/data``
"""

import sys
import tempfile
from pathlib import Path

from domainclip import CLIPFinetuningConfig, run_training
from domainclip.demo.drawn import draw_demo_data


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny"
    data = sys.argv[2] if len(sys.argv) > 2 else draw_demo_data(folder / "data")
    config = CLIPFinetuningConfig(model_name=model, data_path=data, output_dir=folder / "run", domain="scientific")
    if model == "tiny":
        config.max_steps = 4  # a random model of this size learns little; this shows the way only
    outcome = run_training(config)
    print("before", outcome.report.before["acc1"], "after", outcome.report.after["acc1"])
    print("report in", outcome.folder / "report.md")


if __name__ == "__main__":
    main()
