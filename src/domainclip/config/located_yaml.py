"""YAML whose every value remembers its line, so that an error can name it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from domainclip.errors import ConfigurationError, MissingRecipeError
from domainclip.files import read_limited

MOST_BYTES = 2_000_000
"""Of a YAML file: reading this much takes some seconds."""
_MOST_COPIES = 100_000
"""Values that aliases may stand for in one file. Each alias of an alias multiplies them: nine lines make a thousand
million."""

KeyPath = tuple[str | int, ...]
"""Where a value stands: keys of mappings and places in lists (from 0), from the outside in."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: only ``true`` and ``false`` are truth values, and no text is a date or a number of base 60.
    1.1 reads the choice ``off`` as false and ``12:30`` as 750."""


class _Dumper(yaml.SafeDumper):
    """Quotes every text that either YAML would read as something else."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$",
        list("-+.0123456789"),
    ),
    ("float", r"^\.(?:nan|NaN|NAN)$", ["."]),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


@dataclass(frozen=True)
class LocatedYaml:
    """``values`` of a YAML text (None where there is nothing in it); ``lines`` (from 1) of each key and list entry;
    ``source`` names the file."""

    values: Any
    lines: dict[KeyPath, int]
    source: str

    @classmethod
    def parse(cls, text: str, source: str) -> LocatedYaml:
        """Read a YAML text.

        Args:
            text: of the file.
            source: what messages call it.

        Returns:
            Values and lines.

        Raises:
            ConfigurationError: it is no YAML, a key stands twice, a value contains itself, or aliases multiply; the
                message has the line.
        """
        try:
            node = yaml.compose(text, Loader=_Loader)
            if node is None:
                return cls(None, {}, source)
            lines: dict[KeyPath, int] = {}
            _refuse_endless(node, source)
            _locate(node, (), lines, source)
            return cls(_values(node, source), lines, source)
        except RecursionError:
            raise ConfigurationError(f"{source}: values lie too deep inside each other") from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f" line {mark.line + 1}" if mark else ""
            problem = getattr(error, "problem", None) or str(error).split("\n")[0]
            raise ConfigurationError(f"{source}{where}: not valid YAML ({problem})") from None

    def mapping(self, what: str) -> dict[str, Any]:
        """The values of a text that must be a list of 'key: value' lines.

        Args:
            what: the word for the file in the message.

        Returns:
            Values by key; none for an empty file.

        Raises:
            ConfigurationError: it is something else.
        """
        if self.values is None:
            return {}
        if not isinstance(self.values, dict):
            raise ConfigurationError(f"{self.source}: {what} is a list of 'key: value' lines, this is something else")
        return self.values

    def where(self, *path: str | int) -> str:
        """ "FILE line N" of the innermost part of ``path`` that the file has.

        Args:
            path: keys and indices that lead to a value.

        Returns:
            The place.
        """
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.source} line {self.lines[path[:length]]}"
        return self.source


def yaml_text(content: Any, **style: Any) -> str:
    """Values as files have them. Keys stay in their order unless ``sort_keys``.

    Args:
        content: plain values.
        style: keywords of ``yaml.dump``.

    Returns:
        The text.
    """
    return yaml.dump(content, Dumper=_Dumper, allow_unicode=True, **{"sort_keys": False, **style})


def yaml_value(text: str) -> Any:
    """One value, as files have it.

    Args:
        text: as somebody wrote it.

    Returns:
        The plain value.

    Raises:
        ConfigurationError: it is no YAML that ``LocatedYaml.parse`` reads.
    """
    return LocatedYaml.parse(text, "this value").values


def _values(node: yaml.Node, source: str) -> Any:
    try:
        return _Loader("").construct_document(node)
    except ValueError as error:  # a tag that says what the text is not: !!int abc
        problem = "a number of thousands of digits" if "digits" in str(error) else error
        raise ConfigurationError(f"{source}: not valid YAML ({problem})") from None


def _refuse_endless(root: yaml.Node, source: str) -> None:
    """Raises ``ConfigurationError`` for an alias inside the very value that its anchor names, and for aliases that
    multiply: nothing that walks through such values would come to an end."""
    sizes: dict[int, int] = {}  # of each value written in the file, with all that its aliases stand for

    def size_of(node: yaml.Node, around: set[int]) -> int:
        if id(node) in around:
            raise ConfigurationError(
                f"{source} line {node.start_mark.line + 1}: this value contains itself (an alias of an anchor around "
                "it). Write the value out, or put the alias outside the value that its anchor names"
            )
        if id(node) not in sizes:
            around.add(id(node))
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = (part for entry in parts for part in (entry if isinstance(node, yaml.MappingNode) else (entry,)))
            sizes[id(node)] = 1 + sum(size_of(part, around) for part in inner)
            around.remove(id(node))
            if sizes[id(node)] - len(sizes) > _MOST_COPIES:
                raise ConfigurationError(
                    f"{source} line {node.start_mark.line + 1}: aliases (*name) stand for more than {_MOST_COPIES:,} "
                    "values here. Write out the few that are meant"
                )
        return sizes[id(node)]

    size_of(root, set())


def _locate(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            inner = (*path, key)
            if inner in lines:
                raise ConfigurationError(f"{source} line {line}: {key!r} stands twice (first on line {lines[inner]})")
            lines[inner] = line
            # A key is a name: YAML would read "NO" and "on" as truth values and "1" as a number.
            if isinstance(key_node, yaml.ScalarNode) and key != "<<":
                key_node.tag = "tag:yaml.org,2002:str"
            _locate(value_node, inner, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, entry in enumerate(node.value):
            lines[(*path, index)] = entry.start_mark.line + 1
            _locate(entry, (*path, index), lines, source)


def read_yaml_text(path: Path, what: str) -> str:
    """The text of a file.

    Args:
        path: of the file.
        what: the word for it in the message.

    Returns:
        The text.

    Raises:
        ConfigurationError: it is missing or cannot be read.
    """
    try:
        return read_limited(path, MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        raise MissingRecipeError(f"{what} {path} does not exist") from None
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{what} {path} cannot be read: it is not UTF-8 (byte {error.start + 1}). Save it as UTF-8"
        ) from None
