"""Images by URL: none."""

from __future__ import annotations

from collections.abc import Sequence

from domainclip.service.images import ImageInputError


class UrlFetcher:
    """Refuses every URL."""

    def __init__(self, hosts: Sequence[str], max_bytes: int) -> None:
        self.hosts, self.max_bytes = hosts, max_bytes

    async def fetch(self, url: str) -> bytes:
        """The file behind a URL."""
        raise ImageInputError("url_not_allowed", "Images are not fetched from URLs here: send their content")
