"""MLflow: a server at ``MLFLOW_TRACKING_URI``, or a SQLite file."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from domainclip.tracking.exporters.exporter import (
    EXPORTERS,
    Exporter,
    Figures,
    Result,
    RunFacts,
    require,
    without_password,
)

T = TypeVar("T")

EXPERIMENT = "domainclip"
"""Where ``MLFLOW_EXPERIMENT_NAME`` says nothing."""
RUN_TAG = "domainclip.run"
METRICS, PARAMETERS, LENGTH = 1000, 100, 6000
"""The most that MLflow takes in one request, and of a parameter's text."""
STATES = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow itself would try for minutes; we try again anyway. A user's own values stay."""


@EXPORTERS.register("mlflow")
class MLflowExporter(Exporter):
    """Figures as metrics, the recipe as parameters, milestones and the verdict as tags.

    The run is found by a tag, so that a resumed one goes on in the same. Names are those of ``metrics.jsonl``, but for
    characters that MLflow does not take: ``R@1`` is ``R_at_1``.

    Raises:
        MissingExtraError: The package ``mlflow`` (or ``mlflow-skinny`` with ``sqlalchemy``) is not installed.
    """

    def __init__(self) -> None:
        mlflow = require("mlflow", "mlflow")
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        self._uri: str = mlflow.get_tracking_uri()
        if self._uri.startswith("sqlite:"):
            require("sqlalchemy", "mlflow")
            require("alembic", "mlflow")
            mlflow.MlflowClient(self._uri)  # makes the file: killed while it does so, MLflow would not open it again
        self.destination = without_password(self._uri)
        self._client: Any = None
        self._run_id = ""

    def start(self, run: RunFacts) -> None:
        """Find the run, or make it, and say that it goes on.

        Args:
            run: Its recipe becomes the parameters.
        """
        from mlflow import MlflowClient

        self._client = MlflowClient(self._uri)
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{run.id}'", max_results=1)
        if found:
            known, self._run_id = found[0].data.params, found[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, tags={RUN_TAG: run.id}, run_name=run.name)
            known, self._run_id = {}, made.info.run_id
        self._log_parameters(run, known)

    def _experiment(self) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        found = self._client.get_experiment_by_name(name)
        return found.experiment_id if found is not None else self._client.create_experiment(name)

    def _log_parameters(self, run: RunFacts, known: dict[str, str]) -> None:
        """Those that are not there: MLflow lets none be changed, such as the epochs of a run that was lengthened."""
        from mlflow.entities import Param

        new = [Param(_named(key), str(value)[:LENGTH]) for key, value in run.recipe.items() if _named(key) not in known]
        for part in _parts(new, PARAMETERS):
            self._client.log_batch(self._run_id, params=part)

    def held(self, rows: Sequence[Figures]) -> set[tuple[int, str]]:
        """Ask the server for the history of each figure.

        Args:
            rows: Those in doubt.

        Returns:
            Step and name of what is there.
        """
        names = {name for row in rows for name in row.values}
        return {
            (metric.step, name)
            for name in sorted(names)
            for metric in self._client.get_metric_history(self._run_id, _named(name))
        }

    def log(self, rows: Sequence[Figures]) -> None:
        """Send figures, many at a time.

        Args:
            rows: Those.
        """
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        metrics = [Metric(_named(name), value, now, row.step) for row in rows for name, value in row.values.items()]
        tags = [RunTag(_named(name), f"step {row.step}, {text}") for row in rows for name, text in row.texts.items()]
        for part in _parts(metrics, METRICS):
            self._client.log_batch(self._run_id, metrics=part)
        for tagged in _parts(tags, PARAMETERS):
            self._client.log_batch(self._run_id, tags=tagged)

    def finish(self, result: Result) -> None:
        """Set the run's status.

        Args:
            result: Of the run.
        """
        for name, text in (("verdict", result.verdict), ("ended", result.text)):
            if text:
                self._client.set_tag(self._run_id, name, text)
        self._client.set_terminated(self._run_id, STATES[result.outcome])


def _named(name: str) -> str:
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
