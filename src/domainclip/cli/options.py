"""Options that several commands have, and what they make of them."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from domainclip.errors import ConfigurationError
from domainclip.registry import nearest
from domainclip.waiting import Progress

if TYPE_CHECKING:
    from domainclip.config import CLIPFinetuningConfig


class HomeGroup(TyperGroup):
    """The command's arguments, in which ``~`` is the home folder: no shell writes it out within ``--output=~/x``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Take the arguments.

        Args:
            ctx: Of the command line.
            args: All of them.

        Returns:
            What is left for a command.
        """
        return super().parse_args(ctx, [re.sub(r"(^|=)~(?=/|$)", _with_home, each) for each in args])


def _with_home(found: re.Match[str]) -> str:
    return found[1] + os.path.expanduser("~")


class KeyCommand(TyperCommand):
    """A command that takes recipe keys, which some will write as options: it answers with the right spelling."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Take the arguments.

        Args:
            ctx: Of the command.
            args: All of them.

        Returns:
            What is left.

        Raises:
            ConfigurationError: There is no such option.
        """
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # typer brings its own copy of click or not, by its version: the error has no class to import.
            if type(error).__name__ != "NoSuchOption":
                raise
            options = [option for param in self.params for option in (*param.opts, *param.secondary_opts)]
            raise _no_such_option(str(getattr(error, "option_name", "")), given, options, ctx.command_path) from None


def _no_such_option(name: str, args: list[str], options: list[str], command: str) -> ConfigurationError:
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.config.key_facts import facts_of, key_meant

    place = next((index for index, each in enumerate(args) if each.partition("=")[0] == name), len(args))
    after = args[place + 1] if place + 1 < len(args) else ""
    _, inline, value = args[place].partition("=") if place < len(args) else ("", "", "")
    value = value if inline else ("VALUE" if not after or after.startswith("-") or "=" in after else after)
    known = [option for option in options if option.startswith("--")]
    key = key_meant(CLIPFinetuningConfig.model_fields, name, guess=False)
    option = nearest(name, known) or next((each for each in known if each.startswith(name) and len(name) > 3), None)
    if key is None and option is None:
        key = key_meant(CLIPFinetuningConfig.model_fields, name)
    if key is not None:  # --out for --output, which is the key output_dir
        names = facts_of(CLIPFinetuningConfig, key).also
        option = next((each for each in known if each[2:] in names), None)
    if key is not None and option is None:
        hint = f"recipe keys have no dashes: write {key}={value}"
    elif option is not None:
        hint = f"did you mean {option}?"
    else:
        hint = f"`{command} --help` lists them; recipe keys are written key=value, without dashes"
    return ConfigurationError(f"There is no option {name}: {hint}")


def recipe_keys(hint: str) -> Any:
    """The argument for recipe keys.

    Args:
        hint: Ends its help.

    Returns:
        What ``Annotated`` takes to make a typer argument of it.
    """
    return typer.Argument(metavar="KEY=VALUE", help=f"Recipe keys, {hint}.")


Overrides = Annotated[list[str] | None, recipe_keys("such as learning_rate=1e-5")]
Recipe = Annotated[
    str | None, typer.Option("--recipe", "-r", help="A shipped recipe (default, debug, medical, …) or a YAML file.")
]
Data = Annotated[str | None, typer.Option("--data", "-d", help="A table, a directory, or hf:NAME.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="Hub name, short name (vit-b-32) or directory of the model.")
]
Domain = Annotated[str | None, typer.Option(help="general, medical, industrial, scientific, or a YAML file.")]
SPLITS = ("train", "val", "test", "all")


def _known_split(split: str) -> str:
    if split not in SPLITS:
        raise ConfigurationError(f"Invalid split {split!r}: choose one of {', '.join(SPLITS)}")
    return split


def _known_device(device: str | None) -> str | None:
    if device not in (None, "cpu", "cuda", "mps"):
        raise ConfigurationError(f"Invalid device {device!r}: choose cpu, cuda or mps")
    return device


Split = Annotated[str, typer.Option(help="train, val or test; all for every row.", callback=_known_split)]
Device = Annotated[
    str | None,
    typer.Option(help="cpu, cuda or mps; left out, the one that would be chosen.", callback=_known_device),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def config_of(recipe: str | None, overrides: list[str] | None, **options: object) -> CLIPFinetuningConfig:
    """The recipe that a command was given: ``overrides`` over ``options`` over the file.

    Args:
        recipe: A shipped recipe or a YAML file; None for no file.
        overrides: ``KEY=VALUE`` texts.
        **options: Values by key; those that are None count as not given.

    Returns:
        The recipe.

    Raises:
        ConfigurationError: A key or value is wrong, or there is no such recipe.
    """
    from domainclip.config import load_recipe, parse_overrides

    named = {key: value for key, value in options.items() if value is not None}
    return load_recipe(recipe, {**named, **parse_overrides(overrides or [])})


def output_folder(output: str | None, overrides: list[str] | None) -> str:
    """The folder that a command is to write to, before its recipe is read.

    Args:
        output: What ``--output`` says.
        overrides: ``KEY=VALUE`` texts, which come before it.

    Returns:
        Its path; the usual one where nothing names it.

    Raises:
        ConfigurationError: A key or value is wrong.
    """
    from domainclip.config import RunSettings, parse_overrides
    from domainclip.config.recipe_sources import environment_values

    given = {**environment_values(), **({"output_dir": output} if output else {}), **parse_overrides(overrides or [])}
    return RunSettings(**{key: value for key, value in given.items() if key == "output_dir"}).output_dir


def warn(text: str) -> None:
    """Say a sentence on the standard error.

    Args:
        text: The sentence.
    """
    typer.echo(f"WARNING: {text}", err=True)


@contextmanager
def importing() -> Iterator[None]:
    """Import what takes seconds, PyTorch above all, in the block: that is said, and the collector of garbage keeps out
    of it. It would take a quarter of the time, among a million objects that stay.

    Yields:
        Nothing.
    """
    with Progress(None, "Loading PyTorch"):
        gc.disable()
        try:
            yield
        finally:
            gc.freeze()
            gc.enable()


def parse_resolutions(text: str) -> list[int]:
    """Read resolutions from the text of an option.

    Args:
        text: Pixels with commas between them, such as "96,128,160".

    Returns:
        Resolutions, ascending, each once.

    Raises:
        ConfigurationError: A part is no positive whole number.
    """
    resolutions = set()
    for part in text.split(","):
        if not (part.strip().isascii() and part.strip().isdecimal()) or int(part) < 1:
            raise ConfigurationError(
                f"Invalid resolution {part.strip()!r} in the resolutions {text!r}: give resolutions in pixels, such as "
                f"96,160"
            )
        resolutions.add(int(part))
    return sorted(resolutions)


def print_json(value: object) -> None:
    """Print plain values for programs, on standard output.

    Args:
        value: What JSON can hold.
    """
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def as_typed(message: str) -> str:
    """A message of the package in the words of the command line.

    The package speaks to callers in Python: ``overwrite=True``, ``steps=…``. Keys of a recipe are the same in both.

    Args:
        message: What an error says.

    Returns:
        The message with options in place of arguments.
    """
    flags = re.sub(r"\b(resume|overwrite|accept_changed_data)=True\b", _option, message)
    return re.sub(r"\b(steps|space|trials)=…", _option, flags)


def _option(found: re.Match[str]) -> str:
    name = {"space": "search"}.get(found[1], found[1])
    return f"--{name.replace('_', '-')}"
