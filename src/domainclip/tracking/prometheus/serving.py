"""Where Prometheus finds a training's figures."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from domainclip.config.tracking_settings import TrackingSettings
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.events import Emitter
from domainclip.files import require_writable, write_bytes

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
DEFAULT_PORT = 9101
"""Where ``report_to`` names prometheus, and neither a port nor a file is given."""
EVERY_SECONDS = 5.0
"""How old the file may be."""


@contextmanager
def prometheus(folder: Path, settings: TrackingSettings, emitter: Emitter) -> Iterator[None]:
    """Within it Prometheus finds the figures of a run, if the recipe wants that.

    Args:
        folder: Of the run.
        settings: ``metrics_port``, ``metrics_textfile``, and whether ``report_to`` names prometheus.
        emitter: Of the run.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: The port is taken, or the file cannot be written.
        MissingExtraError: The package ``prometheus_client`` is not installed.
    """
    port, file = settings.metrics_port, settings.metrics_textfile
    if port is None and file is None and "prometheus" in settings.report_to:
        port = DEFAULT_PORT
    if port is None and file is None:
        yield
        return
    try:
        from prometheus_client import CollectorRegistry

        from domainclip.tracking.prometheus.metrics import TrainingMetrics
    except ImportError as error:
        raise MissingExtraError("prometheus-client", "prometheus", "metrics_port or metrics_textfile") from error
    metrics, registry = TrainingMetrics(folder), CollectorRegistry()
    registry.register(metrics)
    with ExitStack() as stack:
        if port is not None:
            stack.enter_context(_served(registry, port))
        if file is not None:
            stack.enter_context(_written(registry, Path(file)))
        emitter.add(metrics)
        yield


@contextmanager
def _served(registry: CollectorRegistry, port: int) -> Iterator[None]:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, HOST, registry)
    except OSError as error:
        raise ConfigurationError(
            f"metrics_port={port}: nothing can be served there ({error.strerror or error}). Another training may have "
            "it: give another port"
        ) from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _written(registry: CollectorRegistry, path: Path) -> Iterator[None]:
    if path.suffix != ".prom":
        raise ConfigurationError(
            f"metrics_textfile={path}: node_exporter reads only files whose names end in .prom. Give such a name"
        )
    require_writable(path, "metrics_textfile", is_file=True)
    writer = TextfileWriter(registry, path)
    try:
        yield
    finally:
        writer.end()


class TextfileWriter:
    """Writes the figures to a file every few seconds, in a thread of its own, whole or not at all.

    Args:
        registry: What is written.
        path: The file.
    """

    def __init__(self, registry: CollectorRegistry, path: Path) -> None:
        self.registry, self.path = registry, path
        self._failed = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="metrics_textfile", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Write once more, for the end of the run, and stop."""
        self._ending.set()
        self._thread.join(EVERY_SECONDS)

    def _work(self) -> None:
        ended = False
        while not ended:
            ended = self._ending.wait(EVERY_SECONDS)
            self._write()

    def _write(self) -> None:
        from prometheus_client import generate_latest

        try:
            write_bytes(self.path, generate_latest(self.registry))
        except OSError as error:
            if not self._failed:
                self._failed = True
                log.warning(f"metrics_textfile: {self.path} cannot be written: {error}. The run goes on")
