"""What one request is while it is answered."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field

from domainclip.service.batcher import Priority

GONE = 499
"""The status of a request whose client has left before its answer, as nginx logs it."""
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass
class Call:
    """A request on its way, from its first byte to its answer's last.

    Attributes:
        endpoint: Its path below ``/v1/``, or its path.
        id: The client's own, or one that was made; in the log, in the answer, in the list of errors.
        priority: Whether somebody waits for the answer.
        timeout_s: The client's own; None leaves it to the service.
        queue_s: The longest that a part of it was in the queue.
        cached: How many of its images and texts were in the cache.
        rows: How many images and texts it is of.
        accepted: Whether it has passed the admission, which what comes from the cache need not.
        status: Of the answer; 499 for a client that has left before it.
        began: In seconds of ``time.monotonic``.
    """

    endpoint: str
    id: str
    priority: Priority = Priority.INTERACTIVE
    timeout_s: float | None = None
    queue_s: float = 0.0
    cached: int = 0
    rows: int = 0
    accepted: bool = False
    status: int = GONE
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, path: str, given_id: str | None) -> Call:
        """Begin one.

        Args:
            path: Of the URL.
            given_id: What the client calls it.

        Returns:
            The call; an id that could spoil a log is not taken over.
        """
        known = given_id is not None and _ID.fullmatch(given_id)
        return cls(path.removeprefix("/v1/"), given_id if known and given_id else uuid.uuid4().hex)
