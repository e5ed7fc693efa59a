"""Converted graphs in files: where they lie, and whether they still are the model's.

A graph belongs to the weights, config, tokenizer and image processor that it was made from. Their fingerprint is kept
with it, so that the graph of another model, or of this one before it was changed, is not used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from domainclip.config import ModelSettings
from domainclip.errors import BackendError, DamagedFileError
from domainclip.files import read_record, replaced_directory, sha256_of, user_cache, write_record
from domainclip.inference.backends.encoder import Precision
from domainclip.inference.backends.golden import GoldenBatch
from domainclip.models.source.name import FOLDER_PREFIX

FOLDER = "backends"
"""Of a model's folder, for what its back ends have converted."""
RECORD_FILE, TOKENIZER_FILE = "graph.json", "tokenizer.json"
_VERSION = 1
_MODEL_FILES = ("*.safetensors", "*.bin", "*config.json", "tokenizer*", "vocab*", "merges.txt", "*.model")
"""What says how a model computes."""


def model_files(folder: Path) -> list[Path]:
    """The files of a model that decide what it computes.

    Args:
        folder: The model's.

    Returns:
        In the order of their names.
    """
    return sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern) if path.is_file()})


def model_folder(settings: ModelSettings) -> Path | None:
    """Where the files of a recipe's model lie, if it is a folder of the user's.

    Args:
        settings: Of the model.

    Returns:
        The folder; None for a model on the hub, one joined from two, or ``tiny``.
    """
    if settings.vision_model_name or settings.text_model_name:
        return None
    folder = Path(settings.model_name.removeprefix(FOLDER_PREFIX)).expanduser()
    return folder if folder.is_dir() and model_files(folder) else None


def fingerprint_of(folder: Path) -> str:
    """Digest the files that decide what a model computes.

    Args:
        folder: The model's.

    Returns:
        SHA-256 as hexadecimal digits.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _stamps_of(folder: Path) -> dict[str, list[int]]:
    """Size and times of each file. Whoever writes to a file, or puts another in its place, changes them: the time of
    the last change cannot be set back."""
    found = ((path.name, path.stat()) for path in model_files(folder))
    return {name: [status.st_size, status.st_mtime_ns, status.st_ctime_ns] for name, status in found}


@dataclass(frozen=True)
class GraphRecord:
    """What is written down with a graph.

    Attributes:
        backend: Whose graph it is.
        precision: That it was converted for.
        fingerprint: Of the model that it was made from.
        resolution: Of its images, in pixels.
        text_limit: The longest text, in tokens, special ones included.
        lengths: What texts are padded to.
        pad_token_id: By what.
        made_with: Versions of what made it, by name.
        seconds: That the conversion took.
        stamps: Size and times of the model's files when they were last digested; empty where it has no files.
    """

    backend: str
    precision: Precision
    fingerprint: str
    resolution: int
    text_limit: int
    lengths: tuple[int, ...]
    pad_token_id: int
    made_with: dict[str, str]
    seconds: float = 0.0
    stamps: dict[str, list[int]] | None = None


class StoredGraph:
    """The graph of a model for one back end, in a folder of its own.

    Args:
        backend: The name of the back end.
        precision: That it is converted for.
        model: The model's folder, where graphs lie in ``backends``; None for a model that has none.
        fingerprint: Of a model without a folder, by which its graphs are kept in the user's cache.
    """

    def __init__(self, backend: str, precision: Precision, model: Path | None, fingerprint: str | None = None) -> None:
        self.backend, self.precision = backend, precision
        self.model = model
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """Of the model as it is now; its files are digested at the first time."""
        if self._fingerprint is None:
            assert self.model is not None
            self._fingerprint = fingerprint_of(self.model)
        return self._fingerprint

    @property
    def _name(self) -> str:
        return self.backend if self.precision == "fp32" else f"{self.backend}-{self.precision}"

    def _folders(self) -> Iterator[Path]:
        """Where it may lie: beside the model, and in the user's cache for one that cannot be written to."""
        if self.model is not None:
            yield self.model / FOLDER / self._name
        yield user_cache() / FOLDER / self.fingerprint[:32] / self._name  # only now are the model's files digested

    def find(self) -> tuple[Path, GraphRecord] | None:
        """Look for a graph of the model as it is now.

        Returns:
            Its folder and record; None where there is none, or only that of another state of the model.
        """
        for folder in self._folders():
            try:
                values = read_record(folder / RECORD_FILE)
                if values.pop("version", None) != _VERSION:
                    continue
                record = GraphRecord(**{**values, "lengths": tuple(values["lengths"])})
            except (DamagedFileError, TypeError, KeyError):
                continue
            if self._is_current(folder, record):
                return folder, record
        return None

    def _is_current(self, folder: Path, record: GraphRecord) -> bool:
        if (record.backend, record.precision) != (self.backend, self.precision):
            return False
        if self.model is None:
            return record.fingerprint == self.fingerprint
        stamps = _stamps_of(self.model)
        if record.stamps == stamps:  # nobody has touched the files since: half a second for each gigabyte is saved
            return True
        if record.fingerprint != self.fingerprint:
            return False
        with suppress(OSError):  # a copy of the folder, or one whose files were written again as they were
            _write_record(folder, replace(record, stamps=stamps))
        return True

    def write(
        self, record: GraphRecord, golden: GoldenBatch, tokenizer: str | None, convert: Callable[[Path], None]
    ) -> tuple[Path, GraphRecord]:
        """Keep a new graph, whole or not at all: in the model's folder, or in the user's cache where that cannot be
        written to.

        Args:
            record: What is written down with it.
            golden: What it must give.
            tokenizer: The model's, as the library ``tokenizers`` writes it, for those who do without torch.
            convert: Writes the graph into an empty folder.

        Returns:
            Its folder, and the record with the model's files as they are now.

        Raises:
            BackendError: It can be written nowhere.
        """
        record = replace(record, stamps=_stamps_of(self.model) if self.model is not None else {})
        problems = []
        for folder in self._folders():
            try:
                with replaced_directory(folder) as temporary:
                    golden.write(temporary)
                    if tokenizer is not None:
                        (temporary / TOKENIZER_FILE).write_text(tokenizer, encoding="utf-8")
                    convert(temporary)
                    _write_record(temporary, record)
                return folder, record
            except OSError as error:
                problems.append(f"{folder}: {error.strerror or error}")
        raise BackendError(
            f"The graph of {self.backend} can be written nowhere ({'; '.join(problems)}): make one of these folders "
            "writable, or set DOMAINCLIP_CACHE to another"
        )


def _write_record(folder: Path, record: GraphRecord) -> None:
    values: dict[str, Any] = {"version": _VERSION, **asdict(record)}
    write_record(folder / RECORD_FILE, {**values, "lengths": list(record.lengths)})
