"""``domainclip notify``: messages of a run that could not be sent, and a test of where messages go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.errors import ConfigurationError
from domainclip.words import counted


def notify(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The folder of a run, whose messages wait.")] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET", help="Send a test message there: desktop, command:PROGRAM, env:NAME or file:PATH."
        ),
    ] = None,
) -> None:
    """Send the messages of a run that wait still, to those whom its recipe names as notify=….

    Example: domainclip notify outputs/mine
    """
    if (run is None) == (not test):
        raise ConfigurationError("Give the folder of a run, or --test TARGET: one of the two")
    from domainclip.config.recipe_files import recipe_values
    from domainclip.config.tracking_settings import TrackingSettings
    from domainclip.tracking.notifications.message import Digest, Message
    from domainclip.tracking.notifications.queue import MessageQueue
    from domainclip.tracking.notifications.sender import Pauses, Sender
    from domainclip.tracking.notifications.targets import NotSent, targets_of

    if run is None:
        for target in targets_of(test or []):
            target.send(Digest("domainclip", (Message(1, "test", "info", "This is a test."),)))
            typer.echo(f"{target.name}: accepted")
        return
    if not (run / "recipe.yaml").is_file():
        raise ConfigurationError(f"{run} is no folder of a run: there is no recipe.yaml in it")
    values = recipe_values(run / "recipe.yaml")[0]
    settings = TrackingSettings(**{key: values[key] for key in ("notify", "notify_level") if key in values})
    if not settings.notify:
        raise ConfigurationError(f"The recipe of {run} names nobody to tell (notify is empty)")
    failed = []
    for target in targets_of(settings.notify):
        sender = Sender(target, MessageQueue(run / "notifications"), run.name, settings.notify_level, Pauses())
        try:
            typer.echo(f"{target.name}: {counted(sender.send_waiting(), 'message')} sent")
        except NotSent as error:
            failed.append(f"{target.name}: {error}")
    if failed:
        raise NotSent("; ".join(failed))
