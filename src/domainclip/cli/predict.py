"""``domainclip predict``: the class of each image."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, Domain, Recipe, config_of, importing, print_json, warn
from domainclip.cli.start_checks import check_model, check_recipe
from domainclip.errors import ConfigurationError
from domainclip.files import require_writable

Images = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGES",
        help="Images, folders, tables; - reads paths from standard input. Also recipe keys, KEY=VALUE.",
    ),
]
ModelFolder = Annotated[
    str | None, typer.Option("--model", "-m", help="The folder of a saved model, such as outputs/mine/model.")
]


def predict(
    images: Images = None,
    model: ModelFolder = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Classes to choose from, with commas between (or a JSON list); left out, the run's own."),
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes named for each image; left out, all.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="An image whose likeliest class is less probable gets no class.")
    ] = 0.0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="All predictions, a .csv or .jsonl file.")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="The first images with their classes, a .png file.")] = None,
    domain: Domain = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """The class of each image, with probabilities.

    Images are prepared, and classes described, as in the training of the model. Exit code 0 where some image could be
    read; those that could not are rows with an error.

    Example: domainclip predict photos/ --model outputs/mine/model --output classes.csv
    """
    given, overrides = images_and_keys(images or [])
    config = config_of(recipe, overrides, model_name=required_model(model), domain=domain)
    names = None if labels is None else _labels(labels)
    check_file(output, "--output", (".csv", ".jsonl"))
    check_file(sheet, "--sheet", (".png",))
    check_model(config)
    check_recipe(config)
    from domainclip.files import writing

    with importing():
        from domainclip.pipelines.predict import run_prediction
        from domainclip.pipelines.run_folder import output_file

    read = [("IMAGES", each) for each in given if os.path.isdir(each)]
    with output_file(output, read, warn), output_file(sheet, read, warn):
        found = run_prediction(config, given, names, top_k, threshold)
        if output is not None:
            with writing(f"--output {output}"):
                found.write(output)
        if sheet is not None:
            with writing(f"--sheet {sheet}"):
                found.write_sheet(sheet, config.max_image_pixels)
    if as_json:
        print_json(found.to_dict())
    else:
        found.print()
    for path in (output, sheet):
        if path is not None:
            typer.echo(f"Written: {path}", err=as_json)


def images_and_keys(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell images and recipe keys apart.

    Args:
        words: Both, mixed; ``-`` stands for the lines of standard input.

    Returns:
        Paths of images, folders and tables; and ``KEY=VALUE`` texts.

    Raises:
        ConfigurationError: There are no images.
    """
    given: list[str] = []
    overrides: list[str] = []
    for word in words:
        if word == "-":
            given += [line for line in sys.stdin.read().splitlines() if line.strip()]
        elif "=" in word and not os.path.lexists(word) and word.partition("=")[0].isidentifier():
            overrides.append(word)
        else:
            given.append(word)
    if not given:
        raise ConfigurationError("No images: name images, folders or tables, or - for paths on standard input")
    return given, overrides


def required_model(model: str | None) -> str:
    """The model that a command was given.

    Args:
        model: What ``--model`` says.

    Returns:
        It.

    Raises:
        ConfigurationError: Nothing was said.
    """
    if model is None:
        raise ConfigurationError("No model: name the folder of one with --model, such as --model outputs/mine/model")
    return model


def check_file(path: Path | None, option: str, suffixes: Sequence[str]) -> None:
    """Say before the work that its result could not be written after it.

    Args:
        path: A file; None for none.
        option: That named it.
        suffixes: It has to have one of these, in small letters.

    Raises:
        ConfigurationError: Its name is another, or nothing can be written there.
    """
    if path is None:
        return
    if path.suffix.lower() not in suffixes or path.is_dir():
        raise ConfigurationError(f"{option} {path} is not the name of a file that ends in {' or '.join(suffixes)}")
    require_writable(path, option, is_file=True)


def _labels(text: str) -> list[str]:
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigurationError(f"--labels {text!r:.80} begins like a JSON list and is none: {error}") from None
        if not all(isinstance(each, str) for each in found):
            raise ConfigurationError(f"--labels {text!r:.80} holds something else than texts")
    else:
        found = [each.strip() for each in text.split(",")]
    if not found or not all(each.strip() for each in found):
        raise ConfigurationError(f"--labels {text!r:.80} has an empty class: write names with commas between them")
    return found
