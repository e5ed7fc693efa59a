"""How a recipe names its domain: one of the shipped ones, or the path of a file. What is in it, ``domains`` knows."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

Domain = Literal["general", "medical", "industrial", "scientific"]
"""The shipped domains; a user's own has one of them as its family."""

SHIPPED_DOMAINS: tuple[str, ...] = ("general", *sorted(set(get_args(Domain)) - {"general"}))


def is_domain_path(name_or_path: str | Path) -> bool:
    """Whether this means a file.

    Args:
        name_or_path: what a recipe or an ``extends`` says.

    Returns:
        True by its ending, for a folder in it, or because there is such a file; False for a shipped name.
    """
    text = str(name_or_path)
    if text in SHIPPED_DOMAINS:
        return False
    return text.endswith((".yaml", ".yml")) or "/" in text or os.sep in text or os.path.isfile(text)


def check_domain_name(name_or_path: str | Path) -> None:
    """Make sure that there is such a domain. The content of a file is not looked at.

    Args:
        name_or_path: a shipped name, or the path of a YAML file.

    Raises:
        ConfigurationError: "Invalid domain" for what is neither.
    """
    text = str(name_or_path)
    if text in SHIPPED_DOMAINS:
        return
    if not is_domain_path(text):
        guess = nearest(text, SHIPPED_DOMAINS)
        hint = f"did you mean {guess!r}? Shipped: " if guess else "choose one of "
        raise ConfigurationError(
            f"Invalid domain {text!r}: {hint}{', '.join(SHIPPED_DOMAINS)}; or give the path of a YAML file"
        )
    if not os.path.isfile(text):
        problem = "this is no file" if os.path.exists(text) else "there is no such file"
        raise ConfigurationError(
            f"Invalid domain {text!r:.200}: {problem}. `domainclip domain new NAME` writes one to edit"
        )
