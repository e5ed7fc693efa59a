"""Domain files that tests of several files share."""

from __future__ import annotations

from pathlib import Path

from domainclip.config import CLIPFinetuningConfig
from domainclip.resolve import resolve
from resolve_cases import CLIP, PLAIN


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


# --- the recipe ---


def _resolved(config: CLIPFinetuningConfig):
    run = resolve(config, CLIP, PLAIN)
    recipe, decisions = run.recipe, list(run.decisions)
    return recipe, {decision.key: decision.reason for decision in decisions}
