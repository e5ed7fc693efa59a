"""``domainclip align``: see whether a model's images and texts agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

align_app = typer.Typer(no_args_is_help=True, help="See whether images and texts agree.")


@align_app.callback()
def _group() -> None:
    """See whether images and texts agree."""


@align_app.command("report")
def align_report(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Recipe keys, such as similarity_metric=euclidean."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="A table, a directory, or hf:NAME.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Hub name or local directory of the model.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="A shipped recipe or a YAML file.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test; all for every row.")] = "test",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("outputs/alignment"),
    compare: Annotated[
        str | None,
        typer.Option(help="Another model, evaluated on the same rows: the one before fine-tuning, for example."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Answers shown per query; left out, the recipe's retrieval_top_k.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Which images find their captions and the reverse: figures, plots, examples, and the rows that look mislabelled.

    Files of an earlier report in the folder are replaced; nothing else in there is touched.
    """
    from domainclip.config import load_recipe, parse_overrides

    options = {"data_path": data, "model_name": model}
    given = {key: value for key, value in options.items() if value is not None}
    config = load_recipe(recipe, {**given, **parse_overrides(overrides or [])})
    from domainclip.pipelines.align import run_alignment

    report = run_alignment(config, split, output, compare=compare, top_k=top_k)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from domainclip.reports.alignment_report import summary_table

    console = Console()
    console.print(summary_table(report))
    for note in report.notes:
        console.print(f"Data: {note}", markup=False, highlight=False)
    console.print(f"Report: {output / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
