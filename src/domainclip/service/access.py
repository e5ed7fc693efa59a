"""Who may ask: API keys, compared in constant time and never logged."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from domainclip.errors import ConfigurationError
from domainclip.files import read_limited

KEYS_VARIABLE = "DOMAINCLIP_API_KEYS"
_ADMIN = "admin"
_SHORTEST = 16
_LARGEST_FILE = 2**20
_COMMENT = re.compile(r"(^|\s)#.*")


@dataclass(frozen=True)
class AccessKeys:
    """Digests of the keys that are let in, each with whether it may reload the model."""

    digests: Mapping[bytes, bool] = field(default_factory=dict, repr=False)

    def __bool__(self) -> bool:
        return bool(self.digests)

    @classmethod
    def read(cls, path: Path | None) -> AccessKeys:
        """Read the keys.

        Args:
            path: A file of one key a line, ``admin`` after a key that may reload the model; ``#`` begins a comment.
                None looks at the variable DOMAINCLIP_API_KEYS, where a comma stands for the end of a line.

        Returns:
            The keys; none where nothing is given.

        Raises:
            ConfigurationError: The file cannot be read or has no key, or a key is too short.
        """
        if path is not None:
            try:
                text = read_limited(path, _LARGEST_FILE).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"The API keys in {path} cannot be read: {error}") from None
            lines, source = text.splitlines(), str(path)
        else:
            lines, source = os.environ.get(KEYS_VARIABLE, "").split(","), KEYS_VARIABLE
        digests: dict[bytes, bool] = {}
        for number, line in enumerate(lines, 1):
            words = _COMMENT.sub("", line).split()
            if not words:
                continue
            # Headers are of ASCII: another key could never be sent.
            if len(words[0]) < _SHORTEST or not words[0].isascii() or words[1:] not in ([], [_ADMIN]):
                raise ConfigurationError(
                    f"{source}, line {number}: a key has at least {_SHORTEST} ASCII characters, with nothing but the "
                    f"word {_ADMIN} after it, such as the output of: openssl rand -hex 24"
                )
            digests[_digest(words[0])] = words[1:] == [_ADMIN]
        if not digests and (path is not None or os.environ.get(KEYS_VARIABLE, "").strip()):
            raise ConfigurationError(f"{source} holds no API key: write one a line, or leave it out")
        return cls(digests)

    def role(self, headers: Mapping[str, str]) -> str | None:
        """Who a request is from.

        Args:
            headers: Its headers, names in small letters. The key is a bearer token, the password of basic
                authentication (which browsers ask for), or stands in ``X-API-Key``.

        Returns:
            ``admin`` or ``user``; None for a key that is missing or wrong.
        """
        given = _key_of(headers)
        found: str | None = None
        if given is not None:
            digest = _digest(given)
            for known, is_admin in self.digests.items():  # all of them: the time says nothing of which is near
                if hmac.compare_digest(known, digest):
                    found = _ADMIN if is_admin else "user"
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _key_of(headers: Mapping[str, str]) -> str | None:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:  # no base64, or no text
            return None
    return headers.get("x-api-key")
