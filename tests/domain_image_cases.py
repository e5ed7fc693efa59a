"""Pictures and chains that tests of several files share."""

from __future__ import annotations

from typing import Any

import numpy as np

from domainclip.config.domain_images import ImagePreprocessing

RNG = np.random.default_rng(7)


def settings(**values: Any) -> ImagePreprocessing:
    return ImagePreprocessing(**values)
