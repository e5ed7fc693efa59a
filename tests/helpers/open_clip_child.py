"""Embeddings by open_clip itself, in a process of its own: ``open_clip_child.py INPUTS OUTPUTS``.

``INPUTS`` is a torch file with a list of jobs, each a checkpoint's ``folder``, ``pixels`` [n, 3, size, size] and
``texts``; ``OUTPUTS`` gets ``ids``, ``image``, ``text`` and ``scale`` for each.

open_clip imports torchvision for its image transforms, which have no part in this: where torchvision cannot be
imported beside this torch, empty classes take its place.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types

import torch


class _Stub(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {"BICUBIC": 3, "BILINEAR": 2, "NEAREST": 0, "BOX": 4, "HAMMING": 5, "LANCZOS": 1})
        setattr(self, name, made)
        return made


def _stand_in_for_torchvision() -> None:
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        parts = ("", ".transforms", ".transforms.functional", ".ops", ".ops.misc", ".datasets", ".models")
        names = [f"torchvision{part}" for part in parts]
        for name in names:
            module = _Stub(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            module.__path__ = []  # type: ignore[attr-defined]
            sys.modules[name] = module
        for name in names[1:]:
            parent, _, child = name.rpartition(".")
            setattr(sys.modules[parent], child, sys.modules[name])


@torch.no_grad()
def main(inputs: str, outputs: str) -> None:
    import transformers  # noqa: F401  (first: it looks whether there is a torchvision)

    _stand_in_for_torchvision()
    import open_clip

    found = []
    for job in torch.load(inputs):
        name = f"local-dir:{job['folder']}"
        os.chdir(job["folder"])  # where hf_model_name names a folder beside the config
        model = open_clip.create_model(name).eval()
        ids = open_clip.get_tokenizer(name)(job["texts"])
        image, text = model.encode_image(job["pixels"]), model.encode_text(ids)
        found.append({"ids": ids, "image": image, "text": text, "scale": model.logit_scale.detach()})
    torch.save(found, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
