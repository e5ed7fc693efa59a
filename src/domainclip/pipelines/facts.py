"""What a model and a data set say about themselves, for ``config.resolve``."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence

from domainclip.data.records import ImageTextPair
from domainclip.models import DualEncoder
from domainclip.resolve import DataFacts, ModelFacts

_HEIGHTS = re.compile(r"\b(upper|lower|top|bottom)\b", re.IGNORECASE)
_LEFT_RIGHT = re.compile(r"\b(left|right)\b", re.IGNORECASE)


def model_facts(encoder: DualEncoder) -> ModelFacts:
    return ModelFacts(
        native_resolution=encoder.native_resolution,
        text_length=encoder.text_length,
        fixed_text_length=encoder.processor.text_padding == "fixed",
        image_tower_kind=encoder.image_tower_kind,
        text_tower_kind="transformer",
        temperature=float((-encoder.logit_scale.detach()).exp()),
        sigmoid=encoder.logit_bias is not None,
        resolutions=encoder.resolution_rule,
        fresh_projections=encoder.fresh_projections,
    )


def data_facts(pairs: Sequence[ImageTextPair], processes: int = 1) -> DataFacts:
    captions = Counter(" ".join(pair.caption.split()) for pair in pairs)
    repeated = sum(count for count in captions.values() if count > 1)
    labels = [pair.label for pair in pairs if pair.label is not None]
    sizes = Counter(labels).values()
    return DataFacts(
        train_rows=len(pairs),
        repeated_caption_fraction=repeated / max(1, len(pairs)),
        labelled_fraction=len(labels) / max(1, len(pairs)),
        classes=len(set(labels)),
        names_left_right=any(_LEFT_RIGHT.search(caption) for caption in captions),
        names_heights=any(_HEIGHTS.search(caption) for caption in captions),
        cores=max(1, (os.cpu_count() or 1) // processes),
        processes=processes,
        class_imbalance=max(sizes) / min(sizes) if sizes else 1.0,
    )
