"""The use cases: each brings the parts together, from a recipe to a result.

Names are loaded when they are first used: a search by a stored graph needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from domainclip.pipelines.controller import CLIPFinetuningController
    from domainclip.pipelines.run import RunOutcome, run_training

_HOME = {"CLIPFinetuningController": "controller", "RunOutcome": "run", "run_training": "run"}

__all__ = ["CLIPFinetuningController", "RunOutcome", "run_training"]

if not TYPE_CHECKING:  # to a checker, a module with a __getattr__ has every name there is

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in _HOME:
            return getattr(import_module(f"domainclip.pipelines.{_HOME[name]}"), name)
        raise AttributeError(f"module 'domainclip.pipelines' has no attribute {name!r}")
