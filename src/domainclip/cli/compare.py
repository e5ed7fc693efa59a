"""``domainclip compare``: several models on several data sets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import (
    AsJson,
    Domain,
    Recipe,
    Split,
    config_of,
    importing,
    print_json,
    recipe_keys,
    warn,
)
from domainclip.cli.start_checks import check_data, check_metric, check_model, check_recipe
from domainclip.errors import ConfigurationError


def compare(
    overrides: Annotated[list[str] | None, recipe_keys("the same for all models and data sets")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="[NAME=]MODEL", help="As for train; give it once for each model."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="[NAME=]DATA", help="As for train; once for each data set."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Name of the model the others are tested against; left out, the first.")
    ] = None,
    split: Split = "test",
    metric: Annotated[
        str | None,
        typer.Option(help="acc1, mean_per_class_recall, macro_f1, mean_R@1, …; left out, each set's primary metric."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for compare.json, compare.md, compare.html and matrix.png."),
    ] = None,
    recipe: Recipe = None,
    domain: Domain = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first image, data set or model that cannot be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Every model on every data set: intervals, paired tests against the reference, a verdict in each cell.

    A data set that cannot be evaluated leaves its reason in the matrix and the rest goes on.

    Example: domainclip compare -m vit-b-32 -m mine=outputs/mine/model -d images.csv
    """
    config = config_of(recipe, overrides, domain=domain)
    check_recipe(config)
    if not config.plugins:
        check_metric(metric, "--metric")
    models, sets = named(model or [], "model"), named(data or [], "data")
    if reference is not None and reference not in models:
        raise ConfigurationError(f"The reference {reference!r} is no model: choose one of {', '.join(models)}")
    for name in models if strict else [reference or next(iter(models))]:  # the others leave a reason in the matrix
        if name in models:
            check_model(config.updated(model_name=models[name]))
    for path in sets.values() if strict or len(sets) == 1 else ():
        check_data(path)
    with importing():
        from domainclip.pipelines.compare import comparison_folder, run_compare
        from domainclip.pipelines.output_lock import locked_output

    with locked_output(output, "--output", warn) if output is not None else nullcontext():
        if output is not None:
            read = [*(("--model", path) for path in models.values()), *(("--data", path) for path in sets.values())]
            comparison_folder(output).claim(overwrite=True, inputs=read)
        found = run_compare(config, models, sets, reference=reference, split=split, metric=metric, strict=strict)
        if as_json:
            print_json(found.report.to_dict())
        else:
            found.print()
        if output is not None:  # last, so that figures which cannot be written were at least shown
            typer.echo("\n".join(f"Written: {path}" for path in found.write(output)), err=as_json)


def named(entries: Sequence[str], what: str) -> dict[str, str]:
    """Read the names and paths that a command was given.

    Args:
        entries: "name=path", or bare paths, whose name is as much of their end as tells them apart.
        what: The option that they come from, for messages: ``model`` or ``data``.

    Returns:
        Name → path, in the order given.

    Raises:
        ConfigurationError: There are none, a name or path is empty, or a name comes twice.
    """
    if not entries:
        raise ConfigurationError(f"Nothing to compare: give at least one --{what}")
    given: list[tuple[str | None, str]] = []
    for entry in entries:
        name, equals, path = entry.partition("=")
        if not equals or Path(entry).exists():  # a path may hold an equals sign itself
            name, path = "", entry
        elif not name.strip() or not path.strip():
            raise ConfigurationError(f"Invalid --{what} {entry!r}: write NAME=PATH, or the path alone")
        given.append((name.strip() or None, path.strip()))
    bare = _telling_ends([path for name, path in given if name is None])
    found: dict[str, str] = {}
    for own, path in given:
        name = own or bare[path]
        if name in found:
            raise ConfigurationError(
                f"Two of --{what} are called {name!r} ({found[name]} and {path}): name them apart with NAME=PATH"
            )
        found[name] = path
    return found


def _telling_ends(paths: Sequence[str]) -> dict[str, str]:
    """Each path's shortest end that no other path shares: "model", or "run1/model" beside "run2/model"."""
    parts = {path: Path(path).parts or (path,) for path in paths}

    def end(path: str, length: int) -> str:
        return "/".join(part.strip("/") for part in parts[path][-length:]).lstrip("/") or path

    found = {}
    for path in parts:
        others = [other for other in parts if other != path]
        lengths = range(1, len(parts[path]) + 1)
        own = (end(path, n) for n in lengths if all(end(path, n) != end(other, n) for other in others))
        found[path] = next(own, path)
    return found
