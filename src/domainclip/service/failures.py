"""What goes wrong with a request, or with one item of it, in the form that clients of OpenAI's interface know."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from domainclip.errors import CLIPFinetuningError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class RequestFailure(CLIPFinetuningError):
    """A request that gets no results.

    Args:
        status: Of HTTP.
        code: A word for programs.
        message: What was wrong, and what to do.
        param: The field that was wrong.
        retry_after: When another try may succeed, in seconds.
        errors: What was wrong with each image and text.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        retry_after: float | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after, self.errors = retry_after, list(errors)

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says besides its body."""
        found = {} if self.retry_after is None else {"retry-after": str(max(1, math.ceil(self.retry_after)))}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    def to_dict(self) -> dict[str, Any]:
        """OpenAI's error object.

        Returns:
            Plain values.
        """
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": self.message, "type": kind, "code": self.code, "param": self.param}
        return {"error": error, "errors": self.errors}


class ItemFailure(CLIPFinetuningError):
    """One image or text that gets no result; those beside it do.

    Args:
        code: A word for programs.
        message: What was wrong, and what to do.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


DEADLINE = "deadline_exceeded"
"""The code of an item that was not computed in time."""
