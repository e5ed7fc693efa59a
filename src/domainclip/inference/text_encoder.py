"""``TextEncoder``: texts to embeddings by a stored graph, without torch, so that a search answers a second after its
command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.captions.given_texts import GivenTexts, text_list
from domainclip.errors import BackendError, CLIPFinetuningError
from domainclip.inference.backends.encoder import BACKENDS, Precision
from domainclip.inference.backends.golden import GoldenBatch, check_cosine
from domainclip.inference.backends.graphs import TOKENIZER_FILE, GraphRecord, StoredGraph, model_folder
from domainclip.inference.backends.names import AUTO, TORCH, in_order, parse_backend
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.inference.captions import caption_pipeline
from domainclip.resolve import ResolvedInference, resolve_for_inference


class StoredTokenizer:
    """A model's tokenizer as it was stored with a graph: the same ids as ``EncoderProcessor.token_ids``.

    Args:
        path: What the library ``tokenizers`` has written; its truncation is the model's.
        max_length: The longest text in tokens, special ones included.
    """

    def __init__(self, path: Path, max_length: int) -> None:
        from tokenizers import Tokenizer

        self._path = path
        self.max_length = max_length
        self._cutting = Tokenizer.from_file(str(path))
        self._direction = (self._cutting.truncation or {}).get("direction", "right")

    def token_ids(self, texts: Sequence[str], max_length: int | None = None) -> list[list[int]]:
        """Token ids of each text, special tokens included, without padding.

        Args:
            texts: The texts.
            max_length: Longer ones are cut, in tokens; None: the model's limit.

        Returns:
            One list a text.
        """
        limit = min(max_length or self.max_length, self.max_length)
        self._cutting.enable_truncation(limit, direction=self._direction)
        return [encoded.ids for encoded in self._cutting.encode_batch(list(texts))]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Length of each text in tokens, special tokens included, before any cutting.

        Args:
            texts: The texts.

        Returns:
            One number a text.
        """
        return [len(encoded.ids) for encoded in self._counting.encode_batch(list(texts))]

    @cached_property
    def _counting(self):  # type: ignore[no-untyped-def]  # of a library that is imported when it is needed
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._path))
        tokenizer.no_truncation()
        return tokenizer


class TextEncoder:
    """Embeds texts as ``ModelSession.encode_texts`` does, by a graph that a back end has stored for the model.

    Args:
        folder: Of the graph.
        record: Of the graph.
        precision: To compute in.
        resolved: The recipe with its domain, whose steps captions go through first.

    Attributes:
        shapes: What encodes tokenized texts; ``shapes.encoder`` says by which back end.

    Raises:
        BackendError: The graph's text tower does not agree with float32 on the golden batch, or lacks a file.
    """

    def __init__(self, folder: Path, record: GraphRecord, precision: Precision, resolved: ResolvedInference) -> None:
        golden = GoldenBatch.read(folder)
        if golden is None or not (folder / TOKENIZER_FILE).is_file():
            raise BackendError(f"{folder} lacks its tokenizer or its golden batch")
        self.fingerprint = record.fingerprint
        encoder = BACKENDS[record.backend].load(folder, precision)
        self.shapes = FixedShapes(encoder, record.lengths, record.pad_token_id)
        check_cosine("text", golden.text_cosine(self.shapes), precision)
        self._tokenizer = StoredTokenizer(folder / TOKENIZER_FILE, record.text_limit)
        data = resolved.data
        self._max_length = data.max_sequence_length if data.is_set("max_sequence_length") else None
        self._transform = caption_pipeline(resolved, self._tokenizer)

    @classmethod
    def find(cls, model: str | Path | ResolvedInference) -> TextEncoder | None:
        """Look for a graph of a model that can embed texts at once.

        Args:
            model: The folder of a saved model, or a recipe with its domain. What the recipe says of ``backend`` holds;
                where it says nothing, any back end that is installed and has a graph is taken, in the most exact
                precision: a single text takes little time in any.

        Returns:
            The encoder; None where there is none, so that the model itself has to be loaded (``ModelSession``).

        Raises:
            ConfigurationError: The recipe names no back end that there is, or the domain's file is wrong.
        """
        if isinstance(model, ResolvedInference):
            resolved = model
        else:
            resolved = resolve_for_inference(CLIPFinetuningConfig(model_name=str(model)))
        recipe = resolved.recipe
        for name, precision in _wanted(recipe.backend if recipe.is_set("backend") else AUTO):
            try:
                folder = model_folder(resolved.model)
                found = StoredGraph(name, BACKENDS[name].graphs[precision], folder).find() if folder else None
                if found is not None:
                    return cls(*found, precision, resolved)
            except CLIPFinetuningError:  # refused, or a package is missing: the next one
                continue
        return None

    def encode_texts(self, texts: GivenTexts) -> Float32[np.ndarray, "texts dim"]:
        """Embed texts; equal texts are encoded once.

        Args:
            texts: One text or many; what the domain does to captions is done to them first.

        Returns:
            Embeddings of unit length.

        Raises:
            DataError: There are no texts, or one is no string (then also a ``TypeError``).
        """
        cleaned = [self._transform(text) for text in text_list(texts)]
        index_of = {text: index for index, text in enumerate(dict.fromkeys(cleaned))}
        embeds = self.shapes.encode_tokens(self._tokenizer.token_ids(list(index_of), self._max_length))
        embeds = embeds / np.maximum(np.linalg.norm(embeds, axis=1, keepdims=True), 1e-12)
        return embeds[[index_of[text] for text in cleaned]]


_BY_EXACTNESS: tuple[Precision, ...] = ("fp32", "bf16", "int8")


def _wanted(backend: str) -> Iterator[tuple[str, Precision]]:
    name, precision = parse_backend(backend)
    if name == TORCH:
        return
    for each in in_order() if name == AUTO else (name,):
        if BACKENDS[each].missing() is None:
            given = (
                sorted(BACKENDS[each].graphs, key=_BY_EXACTNESS.index) if name == AUTO else BACKENDS[each].precisions()
            )
            yield from ((each, wanted) for wanted in ((precision,) if precision else given))
