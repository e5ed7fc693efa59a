"""The use cases: each brings the parts together, from a recipe to a result.

Names are loaded when they are first used: a search by a stored graph needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from domainclip.lazy import lazy_names

if TYPE_CHECKING:
    from domainclip.pipelines.controller import CLIPFinetuningController
    from domainclip.pipelines.run import RunOutcome, run_training

_HOME = {"CLIPFinetuningController": "controller", "RunOutcome": "run", "run_training": "run"}

__all__ = ["CLIPFinetuningController", "RunOutcome", "run_training"]

if not TYPE_CHECKING:  # to a checker, a module with a __getattr__ has every name there is
    __getattr__ = lazy_names(__name__, _HOME)
