"""The settings that say who is told of a run while it goes on."""

from __future__ import annotations

from typing import Literal

from domainclip.config.base import Settings
from domainclip.config.key_facts import key


class TrackingSettings(Settings):
    dashboard: bool = key(
        False,
        "run",
        "Serve the run's live page meanwhile; `domainclip watch` shows it as well, at any time.",
        changes_weights=False,
        one_run=True,
        also=("live", "watch"),
    )
    report_to: list[str] = key(
        [],
        "run",
        "Trackers that get the run's figures, by name.",
        changes_weights=False,
        one_run=True,
        also=("logger", "loggers", "trackers"),
        names=("tensorboard", "mlflow", "wandb", "trackio", "prometheus"),
    )
    metrics_port: int | None = key(
        None,
        "run",
        "Port where Prometheus finds the run's figures, on this machine alone.",
        ge=1,
        le=65535,
        changes_weights=False,
        one_run=True,
    )
    metrics_textfile: str | None = key(
        None,
        "run",
        "File that node_exporter's textfile collector reads the run's figures from; its name ends in .prom.",
        changes_weights=False,
        one_run=True,
        path="written",
    )
    notify: list[str] = key(
        [],
        "run",
        "Who is told: desktop, command:PROGRAM, env:NAME or file:PATH (where an apprise URL stands).",
        changes_weights=False,
        one_run=True,
        also=("notifications", "alerts"),
    )
    notify_level: Literal["info", "warning", "error"] = key(
        "warning",
        "run",
        "The least urgent that is told; the end of a run always is.",
        changes_weights=False,
        one_run=True,
    )
