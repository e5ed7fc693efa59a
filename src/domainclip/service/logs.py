"""The log of the service: one line an event, as JSON for programs or as text for people."""

from __future__ import annotations

import json
import logging
import time
from typing import Literal

import orjson

from domainclip.streams import StandardErrorHandler

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, and whatever the event brings along."""

    def format(self, record: logging.LogRecord) -> str:
        """Write an event. See ``logging.Formatter``.

        Args:
            record: The event.

        Returns:
            One line.
        """
        values = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info:
            values["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(values, default=str).decode()
        except TypeError:  # half a surrogate pair, of a file's name; or an integer of more than 64 bits
            return json.dumps(values, default=str)


def begin_logging(form: Literal["json", "text"], level: str = "INFO") -> None:
    """Let the package's events be written to standard error.

    Args:
        form: How.
        level: From which on.
    """
    handler = StandardErrorHandler()
    handler.setFormatter(
        JsonFormatter() if form == "json" else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    for name in ("domainclip", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level if name == "domainclip" else "WARNING")
