"""Embed images and texts with a model, and find the best caption for each image."""

import tempfile
from pathlib import Path

from domainclip import DatasetLoader, ImageTextRetrieval, ModelSession
from domainclip.demo.drawn import draw_demo_data


def main() -> None:
    pairs = DatasetLoader.from_csv(draw_demo_data(Path(tempfile.mkdtemp()) / "data") / "train.csv")[:8]
    captions = sorted({caption for _, caption in pairs})
    model = ModelSession.from_pretrained("tiny")  # or a folder that a run saved
    search = ImageTextRetrieval(model)
    for path, _ in pairs:
        for text, score in search.retrieve_text(path, captions, top_k=1):
            print(f"{path.name}: {text!r} ({score:.3f})")


if __name__ == "__main__":
    main()
