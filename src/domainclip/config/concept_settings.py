"""What an evaluation says of documents, of near misses and of the field's words, and whether it shows single cases."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from domainclip.config.base import Settings


class ConceptSettings(Settings):
    class_tree: str | dict[str, Any] | None = Field(
        None, description="Classes as a tree (nested mapping, or a YAML or JSON file of one): says how near misses are."
    )
    document_col: str | None = Field(
        None,
        min_length=1,
        description="Column with the paper or report a row is from, in place of group_col: a text of it is a hit.",
    )
    terminology: bool | None = Field(
        None, description="Score the text tower on the domain's glossary; null: where the domain has one."
    )
    case_study: bool = Field(
        False, description="After training, write case_study.html: hits, misses and confident errors to look at."
    )
    case_study_pictures: int = Field(
        24, gt=0, le=500, title="Pictures of a case study", description="Pictures in each section of it, at most."
    )

    @field_validator("class_tree")
    @classmethod
    def _some_tree(cls, tree: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
        if tree is not None and not tree:
            raise ValueError("class_tree is empty: give a nested mapping of classes or a file, or leave the key out")
        return tree
