"""``domainclip align``: see whether a model's images and texts agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import (
    AsJson,
    Data,
    Domain,
    KeyCommand,
    Model,
    Recipe,
    Split,
    config_of,
    importing,
    print_json,
    recipe_keys,
)
from domainclip.cli.start_checks import check_model, check_start
from domainclip.files import require_writable

align_app = typer.Typer(no_args_is_help=True, help="See whether images and texts agree.")


@align_app.callback()
def _group() -> None:
    """See whether images and texts agree."""


@align_app.command("report", cls=KeyCommand)
def align_report(
    overrides: Annotated[list[str] | None, recipe_keys("such as similarity_metric=euclidean")] = None,
    data: Data = None,
    model: Model = None,
    recipe: Recipe = None,
    domain: Domain = None,
    split: Split = "test",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the report.")] = Path("outputs/alignment"),
    compare: Annotated[
        str | None,
        typer.Option(help="Another model, evaluated on the same rows: the one before fine-tuning, for example."),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Answers shown per query; left out, the recipe's retrieval_top_k.", min=1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Which images find their captions and the reverse: figures, plots, examples, and the rows that look mislabelled.

    Files of an earlier report in the folder are replaced; nothing else in there is touched.

    Example: domainclip align report --data images.csv --model outputs/mine/model
    """
    config = config_of(recipe, overrides, data_path=data, model_name=model, domain=domain)
    check_model(config)
    check_start(config)
    require_writable(output, "--output")
    if compare is not None:
        check_model(config_of(None, None, model_name=compare))
    with importing():
        from domainclip.pipelines.align import run_alignment

    report = run_alignment(config, split, output, compare=compare, top_k=top_k)
    if as_json:
        print_json(report.to_dict())
        return
    from rich.console import Console

    from domainclip.reports.alignment_report import summary_table

    console = Console()
    console.print(summary_table(report))
    for note in report.notes:
        console.print(f"Data: {note}", markup=False, highlight=False)
    console.print(f"Report: {output / 'report.md'}", markup=False, highlight=False, soft_wrap=True)
