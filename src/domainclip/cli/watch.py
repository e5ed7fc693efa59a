"""``domainclip watch``: the live page of one or several runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def watch(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Folders of runs, or a folder that holds some.")],
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; left out: 8050, or any that is free; 0: any.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; with another one, others than this machine see the page.")
    ] = "127.0.0.1",
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Instead: write the page with all figures as one HTML file.")
    ] = None,
    until_input_ends: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """How trainings are going, in a browser: curves, memory, similarities, worst classes, milestones. Whatever became
    of a run, its folder is enough; several runs are shown side by side.

    Example: domainclip watch outputs/mine
    """
    from domainclip.files import require_writable, write_text, writing
    from domainclip.tracking.live_page.page import page_as_one_file, runs_in
    from domainclip.tracking.live_page.run_view import RunView
    from domainclip.waiting import nothing_said

    if html is not None:
        require_writable(html, "--html", is_file=True)
        page = page_as_one_file([RunView(folder) for folder in runs_in(runs)])
        with writing(f"--html {html}"):
            write_text(html, page)
        typer.echo(f"{html} ({len(page) / 1e6:.1f} MB)")
        return
    from domainclip.tracking.live_page.server import serve

    with nothing_said():
        folders = runs if until_input_ends else runs_in(runs)  # of a run that begins there is no file yet
        serve(folders, host, port, typer.echo, until_input_ends)
