"""Domains on disk: the shipped ones by name, a user's own by path, each laid over what it extends."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from domainclip.config.base import Settings
from domainclip.config.domain_name import Domain, check_domain_name, is_domain_path
from domainclip.config.glossary import Glossary, shipped_glossaries
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.located_yaml import KeyPath, LocatedYaml, read_yaml_text
from domainclip.config.recipe import CLIPFinetuningConfig
from domainclip.config.text_preprocessing import PromptPack, TextPreprocessing
from domainclip.domains.domain import PREPROCESSING, RECIPE_SECTIONS, DomainConfig, check_key
from domainclip.domains.layers import DomainLayer
from domainclip.errors import ConfigurationError
from domainclip.registry import nearest

DOMAIN_FILE = "domain.yaml"
"""The name under which a run and a model keep their domain."""

_SHIPPED = resources.files("domainclip.domains") / "shipped"
_SECTIONS: dict[str, type[Settings]] = {
    "images": ImagePreprocessing,
    "texts": TextPreprocessing,
    "prompts": PromptPack,
}
_KEYS = ("name", "description", "family", "extends", *PREPROCESSING, *RECIPE_SECTIONS)


def shipped_domains() -> list[str]:
    """Names of the domains inside the package, the general one first.

    Returns:
        Their names.
    """
    names = [entry.name.removesuffix(".yaml") for entry in _SHIPPED.iterdir() if entry.name.endswith(".yaml")]
    return sorted(names, key=lambda name: (name != "general", name))


def load_domain(name_or_path: str | Path) -> DomainConfig:
    """A shipped domain by name, or one from a YAML file, with everything it extends.

    ``extends`` names a shipped domain or a file (a relative path starts at the file that says it). Mappings are merged,
    all else is replaced, and null takes back what was inherited; name and description are each domain's own.

    Args:
        name_or_path: a shipped name, or the path of a file.

    Returns:
        The domain, complete.

    Raises:
        ConfigurationError: "Invalid domain" for what is neither a shipped name nor a file; with file, line and key for
            a file that is wrong; with the whole chain where domains extend each other in a circle.
    """
    if str(name_or_path) in shipped_domains():
        return _shipped(str(name_or_path)).model_copy(deep=True)
    return _load(os.path.expanduser(str(name_or_path)))


def domain_family(name_or_path: str) -> Domain:
    """The shipped domain whose objective and metrics hold.

    Args:
        name_or_path: as ``load_domain`` takes it.

    Returns:
        Its name.

    Raises:
        ConfigurationError: as ``load_domain`` does.
    """
    for family in get_args(Domain):
        if family == name_or_path:
            return family
    return load_domain(name_or_path).family


@cache
def _shipped(name: str) -> DomainConfig:
    return _load(name)


def _load(name_or_path: str) -> DomainConfig:
    layer, extends = _layer_of(name_or_path, [])
    values = layer.values
    own_name = Path(name_or_path).stem if is_domain_path(name_or_path) else name_or_path
    name = values.get("name", own_name)
    description = values.get("description", f"Extends {extends[0]}." if extends else "")
    sections = {section: _section(layer, section) for section in _SECTIONS}
    recipe = _recipe_sections(layer)
    texts = sections["texts"]
    assert isinstance(texts, TextPreprocessing)
    if isinstance(texts.glossary, str) and texts.glossary not in shipped_glossaries():
        try:
            sections["texts"] = texts.self_contained()  # from here on the file is not needed
        except ConfigurationError as error:
            raise _located(error, layer, ("texts", "glossary")) from None
    try:
        given = {"family": values["family"]} if "family" in values else {}
        found = DomainConfig(name=name, description=description, extends=extends, **sections, **recipe, **given)
    except ConfigurationError as error:
        raise _located(error, layer, (next(iter(getattr(error, "keys", [])), ""),)) from None
    found._layer = layer
    return found


def _layer_of(name_or_path: str, chain: list[str]) -> tuple[DomainLayer, list[str]]:
    """The layers of a domain laid over each other, and the names of those it extends, nearest first."""
    shipped = name_or_path in shipped_domains()
    path = Path(name_or_path)
    check_domain_name(name_or_path)
    identity = name_or_path if shipped else str(path.resolve())
    if identity in chain:
        circle = [*chain[chain.index(identity) :], identity]
        raise ConfigurationError(
            f"Invalid domain {name_or_path!r}: domains extend each other in a circle "
            f"({' → '.join(Path(name).name for name in circle)}). Take one 'extends' out"
        )
    if shipped:
        text, source = (_SHIPPED / f"{name_or_path}.yaml").read_text(encoding="utf-8"), f"domain {name_or_path}"
    else:
        text, source = read_yaml_text(path, "The domain"), name_or_path
    own = DomainLayer.from_text(text, source)
    _check_shape(own)
    if not shipped:
        _anchor_glossary(own, path.parent)
        _take_in_class_hierarchy(own, path.parent)
    parent = own.values.pop("extends", None)
    if parent is None:
        return DomainLayer().under(own), []
    if not shipped and (path.parent / parent).is_file() and parent not in shipped_domains():
        parent = str(path.parent / parent)
    try:
        below, ancestors = _layer_of(parent, [*chain, identity])
    except ConfigurationError as error:
        if str(error).startswith("Invalid domain") and not str(error).endswith("]"):
            raise ConfigurationError(f"{error} [{own.place(('extends',))}]") from None
        raise
    for key in ("name", "description"):
        below.values.pop(key, None)
    return below.under(own), [Path(parent).stem if is_domain_path(parent) else parent, *ancestors]


def _check_shape(layer: DomainLayer) -> None:
    for key, value in list(layer.values.items()):
        if key not in _KEYS:
            guess = nearest(key, _KEYS)
            hint = f": did you mean {guess!r}?" if guess else f". A domain has {', '.join(_KEYS)}"
            raise ConfigurationError(f"Unknown key {key!r}{hint} [{layer.place((key,))}]")
        if value is None:  # a section with nothing in it says nothing; it takes nothing back
            del layer.values[key]
        elif key in (*PREPROCESSING, *RECIPE_SECTIONS):
            if not isinstance(value, Mapping):
                raise ConfigurationError(
                    f"The section {key!r} holds 'key: value' lines, not {value!r} [{layer.place((key,))}]"
                )
        elif not isinstance(value, str) or not (value.strip() or key == "description"):
            raise ConfigurationError(f"{key!r} is a text, not {value!r} [{layer.place((key,))}]")


def _anchor_glossary(layer: DomainLayer, folder: Path) -> None:
    """Make the path independent of where the program runs: it starts at the domain's file."""
    texts = layer.values.get("texts") or {}
    glossary = texts.get("glossary")
    if isinstance(glossary, str) and glossary not in shipped_glossaries() and (folder / glossary).is_file():
        texts["glossary"] = str(folder / glossary)


def _take_in_class_hierarchy(layer: DomainLayer, folder: Path) -> None:
    """Put the content of a file in its place: resolved recipes hold it, and shall need no other file."""
    evaluation = layer.values.get("evaluation") or {}
    tree = evaluation.get("class_hierarchy")
    if not isinstance(tree, str):
        return
    path = folder / tree if (folder / tree).is_file() else Path(tree)
    try:
        found = LocatedYaml.parse(read_yaml_text(path, "Class hierarchy"), str(path))  # or JSON
        evaluation["class_hierarchy"] = {} if found.values is None else found.values
    except ConfigurationError as error:
        raise _located(error, layer, ("evaluation", "class_hierarchy")) from None


def _section(layer: DomainLayer, section: str) -> Settings:
    values = dict(layer.values.get(section, {}))
    if section == "texts" and isinstance(values.get("glossary"), Mapping):
        try:  # by itself, where its errors know their lines
            values["glossary"] = Glossary(**values["glossary"])
        except ConfigurationError as error:
            raise _located(
                error, layer, (section, "glossary", *_first_path(error)), prefix="texts: glossary: "
            ) from None
    try:
        return _SECTIONS[section](**values)
    except ConfigurationError as error:
        raise _each_located(error, layer, section) from None


def _recipe_sections(layer: DomainLayer) -> dict[str, dict[str, Any]]:
    sections = {section: dict(layer.values.get(section, {})) for section in RECIPE_SECTIONS}
    home = {}
    for section, values in sections.items():
        for key in values:
            try:
                check_key(section, str(key))
            except ConfigurationError as error:
                raise _located(error, layer, (section, key)) from None
            home[key] = section
    try:
        given = {key: value for values in sections.values() for key, value in values.items()}
        checked = CLIPFinetuningConfig(retention_data=None, **given)
    except ConfigurationError as error:
        key = next((key for key in getattr(error, "keys", []) if key in home), "")
        path = (home[key], key) if key else ()
        raise _located(error, layer, path, prefix=f"{home[key]}: " if key else "") from None
    plain = checked.to_dict(only_set=True)  # numbers that YAML reads as text (1e-5) are numbers here
    return {section: {key: plain[key] for key in values} for section, values in sections.items()}


def _first_path(error: ConfigurationError) -> KeyPath:
    paths = getattr(error, "paths", None)
    if paths:
        return tuple(paths[0])
    return tuple(getattr(error, "keys", [])[:1])


def _each_located(error: ConfigurationError, layer: DomainLayer, section: str) -> ConfigurationError:
    """Everything that is wrong with a section's values, each with its own place."""
    messages, paths = getattr(error, "messages", [str(error)]), getattr(error, "paths", [()])
    reported = [
        str(_located(ConfigurationError(message), layer, (section, *path), prefix=f"{section}: "))
        for message, path in zip(messages, paths, strict=True)
    ]
    return ConfigurationError("\n".join(dict.fromkeys(reported)))


def _located(error: ConfigurationError, layer: DomainLayer, path: KeyPath, prefix: str = "") -> ConfigurationError:
    place = layer.place(path)
    return ConfigurationError(f"{prefix}{error}" + (f" [{place}]" if place else ""))
