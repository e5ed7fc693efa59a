"""What an evaluation says of documents, of near misses and of the domain's terms, and whether it shows single cases."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator

from domainclip.config.base import Settings
from domainclip.config.key_facts import SAME_FOR_ALL, key


class SemanticSettings(Settings):
    class_hierarchy: str | dict[str, Any] | None = key(
        None,
        "evaluation",
        "Hierarchy of classes (nested mapping, or a YAML or JSON file of one): says how near misses are.",
        changes_weights=False,
        path="read",
    )
    document_col: str | None = key(
        None,
        "evaluation",
        "Column with the paper or report a row is from, in place of group_col: a text of it is a hit.",
        min_length=1,
        search=SAME_FOR_ALL,
    )
    terminology: bool | None = key(
        None,
        "evaluation",
        "Score the text tower on the domain's glossary; null: where the captions use its terms.",
        changes_weights=False,
    )
    error_analysis: bool = key(
        False,
        "evaluation",
        "After training, write error_analysis.html: hits, misses and confident errors to look at.",
        changes_weights=False,
    )
    error_analysis_images: int = key(
        24,
        "evaluation",
        "Images in each section of it, at most.",
        gt=0,
        le=500,
        title="Images of an error analysis",
        changes_weights=False,
    )

    @field_validator("class_hierarchy")
    @classmethod
    def _some_tree(cls, tree: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if tree is not None and not tree:
            raise ValueError(
                "class_hierarchy is empty: give a nested mapping of classes or a file, or leave the key out"
            )
        return tree
