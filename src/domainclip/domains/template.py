"""The file that ``domainclip domain new`` writes: everything that can be chosen, commented out, what is inherited with
its reason."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from pydantic_core import PydanticUndefined

from domainclip.config.base import Settings
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.key_facts import facts_of
from domainclip.config.located_yaml import KeyPath, yaml_text
from domainclip.config.recipe import CLIPFinetuningConfig
from domainclip.config.text_preprocessing import PromptPack, TextPreprocessing
from domainclip.domains.domain import RECIPE_SECTIONS, Choice, DomainConfig, recipe_sections

_ABOUT = {
    "images": "what is done to every image before the model sees it",
    "texts": "what is done to every caption and prompt before the tokenizer",
    "prompts": "sentences that describe a class",
    "augmentation": "what training shows in place of an image",
    "loss": "the objective and its temperature",
    "training": "rates, length, what is trained; any other key of `domainclip config show` that is no run's own",
    "evaluation": "in which terms results are given",
}
_PREPROCESSING: dict[str, type[Settings]] = {
    "images": ImagePreprocessing,
    "texts": TextPreprocessing,
    "prompts": PromptPack,
}


def domain_template(name: str, parent: DomainConfig, extends: str) -> str:
    """YAML text that is valid as it is and changes nothing of ``parent``, named ``extends`` in it.

    Args:
        name: of the new domain.
        parent: what it extends.
        extends: how its file names that.

    Returns:
        The text of the file.
    """
    lines = [
        f"# The domain {name}. `domainclip domain show FILE` checks it, `domainclip train --domain FILE` uses it.",
        "# Take the # off a section's line, and off the keys in it that you choose. A choice may carry its reason:",
        '#  learning_rate: {value: 1.0e-5, because: "few images"}',
        "# Mappings are merged with what is inherited, lists replace it, and null takes back what was inherited.",
        _line("name", name),
        _line("description", f"Extends {parent.name}: say here what it is for."),
        _line("extends", extends),
    ]
    for section, about in _ABOUT.items():
        lines += ["", f"#{section}:  # {about}"]
        own = [choice for choice in parent.choices() if choice.path[0] == section]
        for before, choice in zip([None, *own], own, strict=False):
            lines += [f"#  {line}" for line in _inherited(choice, before.path if before else ())]
        taken = {choice.path[1] for choice in own}
        for key, default, meaning in _keys_of(section):
            if key not in taken:
                lines.append(f"#  {_line(key, default)}  # {meaning}")
    return "\n".join(lines) + "\n"


def _keys_of(section: str) -> list[tuple[str, Any, str]]:
    """Key, default and meaning of everything that a section may hold (of the training, what is often chosen)."""
    if section not in RECIPE_SECTIONS:
        fields = _PREPROCESSING[section].model_fields
        names = list(fields)
    else:
        fields = CLIPFinetuningConfig.model_fields
        homes = recipe_sections()
        names = [key for key in homes if homes[key] == section]
        if section == "training":  # of so many keys, those that are often chosen
            names = [key for key in names if facts_of(CLIPFinetuningConfig, key).common]
    found = []
    for key in names:
        default = fields[key].get_default(call_default_factory=True)
        found.append((key, None if default is PydanticUndefined else default, fields[key].description or ""))
    return found


def _inherited(choice: Choice, before: KeyPath) -> list[str]:
    """The lines of a choice; mappings around it that also held the choice ``before`` are open already."""
    *around, key = choice.path[1:]
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before[1:-1], around, strict=False)))
    opened = ["  " * depth + _line(around[depth], None).removesuffix(" null") for depth in range(shared, len(around))]
    written = choice.value if choice.because is None else {"value": choice.value, "because": choice.because}
    return [*opened, "  " * len(around) + _line(key, written) + "  # inherited"]


def _line(key: str | int, value: Any) -> str:
    """``key: value`` on one line, whatever the value is."""
    plain = [*value] if isinstance(value, tuple) else value
    text = yaml_text({key: plain}, default_flow_style=True, width=10**6)
    return text.strip()[1:-1]
