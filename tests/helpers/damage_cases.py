"""Ways to damage the JSON files of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HUGE = 10**9
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 605156676\n" % (b"a" * 64)
CONTENTS = {
    "null": b"null",
    "list": b"[1, 2]",
    "text": b'"words"',
    "number": b"7",
    "empty object": b"{}",
    "nested": b"[" * 200_000 + b"]" * 200_000,
    "nested objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "digits": b'{"hidden_size": ' + b"9" * 6_000 + b"}",
    "empty": b"",
    "blank": b" \n",
    "no json": b"{ not json",
    "cut": b'{"model_type": "clip", "text_config": {"hidden',
    "no utf-8": b'{"a": "\xff\xfe\xfa"}',
    "utf-16": '{"model_type": "clip"}'.encode("utf-16"),
    "bom": b'\xef\xbb\xbf{"model_type": "clip"}',
    "zeros": b"\0" * 64,
    "pointer": LFS,
}
WRONG = {"null": None, "text": "words", "list": [], "zero": 0, "negative": -3, "huge": HUGE, "true": True, "half": 0.5}


def change(path: Path, keys: tuple[str, ...], value: Any) -> None:
    content = json.loads(path.read_text())
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(content))
