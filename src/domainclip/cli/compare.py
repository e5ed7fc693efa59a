"""``domainclip compare``: several models on several data sets."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, Recipe, Split, config_of, print_json, recipe_keys, warn


def compare(
    overrides: Annotated[list[str] | None, recipe_keys("the same for all models and data sets")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="[NAME=]MODEL", help="Hub name or local directory; give it repeatedly."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", "-d", metavar="[NAME=]DATA", help="A table, a directory, or hf:NAME; repeatedly."),
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
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at the first image, data set or model that cannot be used.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Every model on every data set: intervals, paired tests against the reference, a verdict in each cell.

    A data set that cannot be evaluated leaves its reason in the matrix and the rest goes on.
    """
    config = config_of(recipe, overrides)
    from domainclip.pipelines.compare import comparison_folder, named, run_compare
    from domainclip.pipelines.output_lock import locked_output

    models, sets = named(model or [], "model"), named(data or [], "data")
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
