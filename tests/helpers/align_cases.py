"""What tests of alignment reports share: the ranking figures, and an engine with a tiny model."""

from __future__ import annotations

from domainclip.config import CLIPFinetuningConfig
from domainclip.inference.engine import EmbeddingEngine
from domainclip.pipelines import CLIPFinetuningController

RANKING = [
    f"{resolution}_{name}" for resolution in ("i2t", "t2i") for name in ("R@1", "R@5", "R@10", "MRR", "median_rank")
]


def make_tiny_engine() -> EmbeddingEngine:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", mixed_precision=False, device="cpu"))
    controller.setup()
    return controller.engine()
