"""What the service is told at its start: limits, promises, and who may ask."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.service.access import AccessKeys


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served.

    Attributes:
        config: The recipe: the model, its device and its back end.
        index: What ``domainclip embed`` has written, for ``/v1/search``.
        slo_ms: What an interactive answer should take at most, in milliseconds. It bounds what is computed at once.
        max_wait_s: A request that would wait longer for others is turned away at once, in seconds.
        max_queue_rows: So many images and texts are under way at one time, at the most.
        max_body_mb: Of one request, in MiB.
        max_items: Images or texts of one request.
        max_image_mb: Of one image's file, in MiB.
        max_image_megapixels: Of one image.
        max_text_characters: Of one text.
        cache_mb: Embeddings kept in memory, in MiB; 0 keeps none.
        cache_file: Embeddings kept on disk, too; None keeps none.
        url_hosts: Hosts that images may be fetched from; empty refuses every URL.
        keys: Who may ask; with none, everybody who reaches the port.
        traces: Whether requests are traced by OpenTelemetry.
        drain_s: What was accepted has so long to finish at the end, in seconds.
    """

    config: CLIPFinetuningConfig
    index: Path | None = None
    slo_ms: float = 100.0
    max_wait_s: float = 2.0
    max_queue_rows: int = 1024
    max_body_mb: int = 64
    max_items: int = 2048
    max_image_mb: int = 20
    max_image_megapixels: int = 64
    max_text_characters: int = 8_000
    cache_mb: int = 256
    cache_file: Path | None = None
    url_hosts: tuple[str, ...] = ()
    keys: AccessKeys = field(default_factory=AccessKeys)
    traces: bool = False
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("slo_ms", "max_wait_s", "max_queue_rows", "max_body_mb", "max_items", "max_image_mb"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} must be positive: {getattr(self, name)}")
