"""Embed images and texts with a model, and find the best caption for each image."""

import tempfile
from pathlib import Path

from domainclip import ModelSession
from domainclip.data import DatasetLoader
from domainclip.demo.images import build_demo_data

pairs = DatasetLoader.from_csv(build_demo_data(Path(tempfile.mkdtemp()) / "data") / "train.csv")[:8]
captions = sorted({caption for _, caption in pairs})

model = ModelSession.load("tiny")  # or a folder that a run saved
similarity = model.similarity([path for path, _ in pairs], captions)
for (path, _), row in zip(pairs, similarity, strict=True):
    print(f"{path.name}: {captions[int(row.argmax())]!r} ({float(row.max()):.3f})")
