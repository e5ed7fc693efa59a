"""What ``domainclip search`` does: the images of a store that fit a text or an image.

Without torch where the model has a stored graph and every query is a text: importing torch would take most of the time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError, MissingImageError
from domainclip.files import write_bytes
from domainclip.inference.fingerprint import space_fingerprint
from domainclip.inference.text_encoder import TextEncoder
from domainclip.resolve import resolve_for_inference
from domainclip.retrieval.store.search import EXACT, SearchableStore, StoreHit, StoreHits
from domainclip.retrieval.store.store import EmbeddingStore
from domainclip.retrieval.store.where import Condition
from domainclip.words import counted, shortened_paths

TEXT, IMAGE = "text", "image"


@dataclass(frozen=True)
class Query:
    """What is searched for: a text, or the path of an image."""

    given: str
    kind: str

    @classmethod
    def of(cls, given: str) -> Query:
        """Tell texts and images apart.

        Args:
            given: The path of a file, or a text.

        Returns:
            The query.

        Raises:
            ConfigurationError: It is empty, or a folder.
            MissingImageError: It is named like an image, and there is no such file.
        """
        if not given.strip():
            raise ConfigurationError("The query is empty: give a text, or the path of an image")
        path = Path(given).expanduser()
        if len(given) < 4096 and os.path.isdir(path):
            raise ConfigurationError(f"The query {given} is a folder: give one image of it, or a text")
        if len(given) < 4096 and os.path.lexists(path):
            return cls(str(path), IMAGE)
        if path.suffix and not any(character.isspace() for character in given):
            from domainclip.data.sources.folder_contents import is_image_name  # with every reader of images

            if is_image_name(path.name):
                raise MissingImageError(f"The query {given} is named like an image, and there is no such file")
        return cls(given, TEXT)


@dataclass
class SearchReport:
    """The answers to all queries.

    Attributes:
        store: What was searched.
        queries: What was asked.
        answers: To each query.
    """

    store: EmbeddingStore
    queries: list[Query]
    answers: list[StoreHits]

    def to_dict(self) -> dict[str, Any]:
        """What ``--json`` gives.

        Returns:
            Plain values.
        """
        return {
            "index": str(self.store.folder),
            "rows": self.store.generation.rows - self.store.generation.errors,
            "queries": [
                {"query": query.given, "kind": query.kind, "reranked": answer.reranked, "hits": hit_values(answer.hits)}
                for query, answer in zip(self.queries, self.answers, strict=True)
            ],
        }

    def print(self, console: Console | None = None) -> None:
        """Show the hits.

        Args:
            console: Where; standard output, if left out.
        """
        console = console or Console()
        for query, answer in zip(self.queries, self.answers, strict=True):
            console.print(hit_table(query.given, answer.hits))

    def write_sheet(self, path: Path, max_pixels: int) -> None:
        """Draw the hits of the first query.

        Args:
            path: A PNG file.
            max_pixels: Larger images are not shown.

        Raises:
            OSError: It cannot be written.
        """
        from domainclip.data.checks.contact_sheet import GridCell, image_grid

        cells = [
            GridCell.of(hit.row.path, f"{hit.score:.3f} {hit.row.label}", max_pixels) for hit in self.answers[0].hits
        ]
        write_bytes(path, image_grid(cells, f"{self.queries[0].given}: {counted(len(cells), 'image')}"))


def hit_values(hits: Sequence[StoreHit]) -> list[dict[str, Any]]:
    """Hits as plain values.

    Args:
        hits: Of one query.

    Returns:
        ``image``, ``score``, ``label`` and ``caption`` of each.
    """
    return [
        {"image": hit.row.path, "score": hit.score, "label": hit.row.label or None, "caption": hit.row.caption or None}
        for hit in hits
    ]


def hit_table(title: str, hits: Sequence[StoreHit]) -> Table:
    """Hits for a reader.

    Args:
        title: Of the table.
        hits: The best first.

    Returns:
        The table.
    """
    folder, names = shortened_paths([hit.row.path for hit in hits])
    table = Table(title=escape(f"{title} in {folder}" if folder else title))
    table.add_column("score", justify="right")
    table.add_column("image", overflow="fold")
    if any(hit.row.label for hit in hits):
        table.add_column("label", overflow="fold")
    for name, hit in zip(names, hits, strict=True):
        table.add_row(*[f"{hit.score:.4f}", escape(name), escape(hit.row.label)][: len(table.columns)])
    return table


def run_search(
    config: CLIPFinetuningConfig,
    queries: Sequence[Query],
    folder: str | Path,
    top_k: int = 10,
    where: Sequence[Condition] = (),
    engine: str = EXACT,
) -> SearchReport:
    """Search a store.

    Args:
        config: The recipe. Where it names no model, it is the one that the store is of.
        queries: Texts and images.
        folder: Of the store.
        top_k: Hits for each query.
        where: What hits have to meet.
        engine: See ``SearchableStore.open``.

    Returns:
        The answers.

    Raises:
        ConfigurationError: There is no store, it is of another model, or no row meets the conditions.
        DamagedFileError: A file of the store is not as it was written.
        ImageError: The image of a query cannot be read.
        ModelLoadError: The model cannot be had.
        IndexNotReadyError: The engine finds too few of the nearest rows.
        MissingExtraError: The engine is not installed.
    """
    store = EmbeddingStore.open(folder)
    if not config.is_set("model_name"):
        config = config.updated(model_name=store.space.model)
    encoder = _QueryEncoder(config, store, only_texts=all(query.kind == TEXT for query in queries))
    found = SearchableStore.open(folder, engine, encoder.texts)
    vectors = np.empty((len(queries), store.space.dim), np.float32)
    for kind in {query.kind for query in queries}:
        asked = [index for index, query in enumerate(queries) if query.kind == kind]
        encode = encoder.texts if kind == TEXT else encoder.images
        vectors[asked] = encode([queries[index].given for index in asked])
    return SearchReport(store, list(queries), found.search(vectors, top_k, where))


class _QueryEncoder:
    """The store's model: its stored text tower where that is enough, else the whole."""

    def __init__(self, config: CLIPFinetuningConfig, store: EmbeddingStore, only_texts: bool) -> None:
        resolved = resolve_for_inference(config)
        found = TextEncoder.find(resolved) if only_texts else None
        if found is not None:
            fingerprint = space_fingerprint(resolved, found.fingerprint)
            self.texts: Callable[[list[str]], np.ndarray] = found.encode_texts
        else:
            from domainclip.inference import ModelSession

            session = ModelSession.from_pretrained(resolved, Console(quiet=True))
            fingerprint = session.fingerprint()
            self.texts = lambda texts: session.encode_text(texts).numpy()
            self.images: Callable[[list[str]], np.ndarray] = lambda images: session.encode_image(images).numpy()
        store.require(fingerprint, config.model_name)
