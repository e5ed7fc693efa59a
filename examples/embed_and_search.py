"""Embed images and texts with a controller, and find the best caption for each image."""

import tempfile
from pathlib import Path

from PIL import Image

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data import DatasetLoader
from domainclip.demo.images import build_demo_data

pairs = DatasetLoader.from_csv(build_demo_data(Path(tempfile.mkdtemp()) / "data") / "train.csv")[:8]
captions = sorted({caption for _, caption in pairs})

controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny"))  # or a folder that a run saved
controller.setup()
similarity = controller.compute_similarity(text=captions, images=[Image.open(path) for path, _ in pairs])
for (path, _), row in zip(pairs, similarity, strict=True):
    print(f"{path.name}: {captions[int(row.argmax())]!r} ({float(row.max()):.3f})")
