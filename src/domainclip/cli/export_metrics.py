"""``domainclip export-metrics``: the figures of runs for an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, print_json


def export_metrics(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs.")],
    to: Annotated[str, typer.Option("--to", help="tensorboard, mlflow, wandb, trackio, or one of a plugin.")],
    plugin: Annotated[
        list[str] | None, typer.Option("--plugin", help="A module or file that adds the tracker; once for each.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send what an experiment tracker has not had of runs that are over.

    Nothing is sent twice: a run that was followed while it went on, by report_to, gets what was missed.

    Example: domainclip export-metrics outputs/mine --to mlflow
    """
    from domainclip.pipelines.export_metrics import export_metrics as send

    sent = send(runs, to, plugin or [])
    if as_json:
        print_json({"tracker": to, "rows_sent": {str(folder): rows for folder, rows in sent.items()}})
        return
    for folder, rows in sent.items():
        typer.echo(f"{folder}: {rows} rows sent to {to}" if rows else f"{folder}: {to} has everything already")
