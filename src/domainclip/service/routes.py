"""The paths below ``/v1``: what is asked for, and what is answered."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import orjson
from fastapi import APIRouter, Request, Response
from torch import from_numpy

from domainclip.errors import CLIPFinetuningError
from domainclip.pipelines.search import hit_values
from domainclip.retrieval.store.where import Condition
from domainclip.service.batcher import Priority
from domainclip.service.bodies import parsed
from domainclip.service.cache import Vector
from domainclip.service.calls import Call
from domainclip.service.embedding import Result
from domainclip.service.failures import DEADLINE, ItemFailure, RequestFailure
from domainclip.service.schemas import (
    ClassifyRequest,
    ClassifyResponse,
    ContentPart,
    EmbeddingsRequest,
    EmbeddingsResponse,
    Image,
    ModelsResponse,
    PairsRequest,
    PairsResponse,
    SearchRequest,
    SearchResponse,
    ServiceRequest,
    SimilarityRequest,
    SimilarityResponse,
)
from domainclip.service.service import Service

R = TypeVar("R", bound=ServiceRequest)
_NUMBERS = 2**20
"""Of one answer, at the most: 12 MB of JSON."""


def json_response(values: Any, status: int = 200) -> Response:
    """An answer.

    Args:
        values: What JSON has, and arrays of NumPy.
        status: Of HTTP.

    Returns:
        The answer.
    """
    return Response(orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY), status, media_type="application/json")


class Routes:
    """Answers of one service.

    Args:
        service: Whose.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.router = APIRouter(prefix="/v1", tags=["model"])
        add = self.router.add_api_route
        add("/similarity", self.similarity, methods=["POST"], response_model=SimilarityResponse)
        add("/pairs", self.pairs, methods=["POST"], response_model=PairsResponse)
        add("/classify", self.classify, methods=["POST"], response_model=ClassifyResponse)
        add("/embeddings", self.embeddings, methods=["POST"], response_model=EmbeddingsResponse)
        add("/search", self.search, methods=["POST"], response_model=SearchResponse)
        add("/models", self.models, methods=["GET"], response_model=ModelsResponse)

    async def similarity(self, request: Request) -> Response:
        """Compare every image with every text."""
        asked, call = await self._asked(request, SimilarityRequest)
        _require_few(asked.images, asked.texts, "texts")
        with self.service.using() as model:
            images, texts, _ = await self.service.embedder.embed(call, model, asked.images, asked.texts)
            errors = _errors("images", images) + _errors("texts", texts)
            _require_one(images, errors)
            _require_one(texts, errors)
            cosines = _matrix(images) @ _matrix(texts).T
            cosines[[error["index"] for error in errors if error["input"] == "images"]] = np.nan
            cosines[:, [error["index"] for error in errors if error["input"] == "texts"]] = np.nan
            # NaN is null in JSON.
            return self._answer({"model": model.name, "similarity": cosines, "errors": errors})

    async def pairs(self, request: Request) -> Response:
        """Compare each image with its own text."""
        asked, call = await self._asked(request, PairsRequest)
        with self.service.using() as model:
            images, texts, _ = await self.service.embedder.embed(
                call, model, [pair.image for pair in asked.pairs], [pair.text for pair in asked.pairs]
            )
            pairs = list(zip(images, texts, strict=True))
            whole = [image if isinstance(image, ItemFailure) else text for image, text in pairs]
            errors = _errors("pairs", whole)
            _require_one(whole, errors)
            scores = [
                None if isinstance(image, ItemFailure) or isinstance(text, ItemFailure) else float(image @ text)
                for image, text in pairs
            ]
            return self._answer({"model": model.name, "scores": scores, "errors": errors})

    async def classify(self, request: Request) -> Response:
        """Say which class each image shows, by the prompts of the domain, with calibrated probabilities."""
        asked, call = await self._asked(request, ClassifyRequest)
        _require_few(asked.images, asked.labels or [], "labels")
        with self.service.using() as model:
            classifier = model.classifiers.get(asked.labels)
            sentences: list[str] = []
            if classifier is None:
                with _as_invalid("labels"):
                    prompts = model.session.class_prompts(asked.labels)
                sentences = list(dict.fromkeys(sentence for each in prompts.values() for sentence in each))
            images, found, _ = await self.service.embedder.embed(call, model, asked.images, sentences)
            if classifier is None:
                embeds = dict(zip(sentences, _all_of(found), strict=True))
                classifier = model.session.classifier(
                    asked.labels, lambda texts: from_numpy(np.stack([embeds[text] for text in texts]))
                )
                model.classifiers.put(asked.labels, classifier)
            with _as_invalid("top_k"):
                classifier.check(asked.top_k, asked.threshold)
            errors = _errors("images", images)
            _require_one(images, errors)
            good = [index for index, image in enumerate(images) if not isinstance(image, ItemFailure)]
            found_classes = classifier(from_numpy(_matrix(images)[good]), asked.top_k, asked.threshold)
            predictions: list[dict[str, Any] | None] = [None] * len(images)
            for index, prediction in zip(good, found_classes, strict=True):
                predictions[index] = vars(prediction)
            return self._answer({"model": model.name, "predictions": predictions, "errors": errors})

    async def embeddings(self, request: Request) -> Response:
        """Embed texts and images, as clients of OpenAI's interface ask for it."""
        asked, call = await self._asked(request, EmbeddingsRequest)
        parts, most = _parts(asked), self.service.settings.max_items
        if len(parts) > most:
            told = f"messages has {len(parts):,} parts, and {most:,} are accepted: send several requests."
            raise RequestFailure(413, "too_many_items", told, "messages")
        images = [part for part in parts if part.kind == "image"]
        texts = [part for part in parts if part.kind == "text"]
        tokens = [part for part in parts if part.kind == "tokens"]
        with self.service.using() as model:
            dim = model.session.encoder.embedding_dim
            if asked.dimensions not in (None, dim):
                told = f"This model has {dim} dimensions, and was not trained to be used with fewer: leave it out"
                raise RequestFailure(422, "invalid_request", told, "dimensions")
            found = await self.service.embedder.embed(
                call,
                model,
                [part.image for part in images],
                [part.text for part in texts],
                [part.tokens for part in tokens],
            )
            of_kind = dict(zip(("image", "text", "tokens"), map(iter, found), strict=True))
            results = [next(of_kind[part.kind]) for part in parts]
            errors = _errors("input", results)
            _require_one(results, errors)
            data = [
                {"object": "embedding", "index": index, "embedding": _encoded(result, asked.encoding_format)}
                for index, result in enumerate(results)
                if not isinstance(result, ItemFailure)
            ]
            computed = [
                part.text for part, each in zip(texts, found.texts, strict=True) if not isinstance(each, ItemFailure)
            ]
            used = sum(len(part.tokens) for part in tokens) + await self.service.embedder.count_tokens(
                call, model, computed
            )
            usage = {"prompt_tokens": used, "total_tokens": used}
            return self._answer({"object": "list", "model": model.name, "data": data, "usage": usage, "errors": errors})

    async def search(self, request: Request) -> Response:
        """Find the images of the index that fit a text or are like an image."""
        asked, call = await self._asked(request, SearchRequest)
        with self.service.using() as model:
            store = model.store
            if store is None:
                told = "This service has no index: start it with --index and what `domainclip embed` has written"
                raise RequestFailure(404, "no_index", told)
            with _as_invalid("where"):
                conditions = [Condition.parse(each) for each in asked.where]
            images = [] if asked.image is None else [asked.image]
            embedded = await self.service.embedder.embed(
                call, model, images, [] if asked.text is None else [asked.text]
            )
            found = embedded.images + embedded.texts
            _require_one(found, _errors("images" if images else "texts", found))
            query = _matrix(found)
            with _as_invalid("where"):
                answer = (await asyncio.to_thread(store.search, query, asked.top_k, conditions))[0]
            hits = hit_values(answer.hits)
            return self._answer({"model": model.name, "hits": hits, "reranked": answer.reranked, "errors": []})

    async def models(self) -> Response:
        """Name the model that answers."""
        with self.service.using() as model:
            return json_response({"object": "list", "data": [self.service.describe(model)]})

    async def _asked(self, request: Request, schema: type[R]) -> tuple[R, Call]:
        call: Call = request.state.call
        self.service.require_ready()
        asked = await parsed(request, schema, self.service.settings.max_items)
        call.priority = Priority.BULK if asked.priority == "bulk" else Priority.INTERACTIVE
        timeout = asked.timeout_ms
        call.timeout_s = None if timeout is None else timeout / 1000
        return asked, call

    def _answer(self, values: dict[str, Any]) -> Response:
        with self.service.metrics.stage("respond"):
            return json_response(values)


@dataclass
class _Part:
    """One entry of a request for embeddings."""

    kind: Literal["image", "text", "tokens"]
    text: str = ""
    image: Image = ""
    tokens: Sequence[int] = ()


def _parts(asked: EmbeddingsRequest) -> list[_Part]:
    """The entries of a request, in their order."""
    if asked.messages is not None:
        parts: list[_Part] = []
        for message in asked.messages:
            if isinstance(message.content, str):
                parts.append(_Part("text", text=message.content))
            else:
                parts += [_part(each) for each in message.content]
        return parts
    given: Sequence[Any] = [asked.input] if isinstance(asked.input, str) else asked.input or []
    if isinstance(given[0], int):
        given = [given]
    return [_part(each, asked.modality) for each in given]


def _part(given: str | list[int] | ContentPart, modality: str = "text") -> _Part:
    if isinstance(given, str):
        return _Part("image", image=given) if modality == "image" else _Part("text", text=given)
    if isinstance(given, list):
        return _Part("tokens", tokens=given)
    if given.text is not None:
        return _Part("text", text=given.text)
    image = given.image_url if given.image_url is not None else given.image
    assert image is not None
    return _Part("image", image=image)


def _errors(name: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    return [
        {"index": index, "input": name, "code": result.code, "message": result.message}
        for index, result in enumerate(results)
        if isinstance(result, ItemFailure)
    ]


def _require_few(images: Sequence[Image], texts: Sequence[str], param: str) -> None:
    """An answer has a number for each image with each text, which keeps everybody waiting while it is written."""
    if len(images) * len(texts) > _NUMBERS:
        told = f"{len(images):,} images with {len(texts):,} {param} each are more than {_NUMBERS:,} numbers: "
        raise RequestFailure(413, "too_many_items", f"{told}send several requests.", param)


def _require_one(results: Sequence[Result], errors: Sequence[Mapping[str, Any]]) -> None:
    """A request of which nothing came out is an error as a whole."""
    failures = [result for result in results if isinstance(result, ItemFailure)]
    if len(failures) < len(results):
        return
    first = failures[0]
    if all(failure.code == DEADLINE for failure in failures):
        raise RequestFailure(429, DEADLINE, first.message, retry_after=1)
    told = first.message if len(failures) == 1 else f"None of {len(failures)} could be used; the first: {first.message}"
    raise RequestFailure(422, first.code, told, str(errors[0]["input"]), errors=errors)


def _all_of(results: Sequence[Result]) -> list[Vector]:
    """Those of texts that all are needed."""
    for result in results:
        if isinstance(result, ItemFailure):
            raise RequestFailure(422, result.code, result.message, "labels")
    return [result for result in results if not isinstance(result, ItemFailure)]


def _matrix(results: Sequence[Result]) -> np.ndarray:
    """Rows of zeros stand where there are errors."""
    dim = next(len(result) for result in results if not isinstance(result, ItemFailure))
    return np.stack([np.zeros(dim, np.float32) if isinstance(each, ItemFailure) else each for each in results])


def _encoded(vector: Vector, form: str) -> Any:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if form == "base64" else vector


@contextmanager
def _as_invalid(param: str) -> Iterator[None]:
    """What the package says of a value that was asked for is the client's to mend."""
    try:
        yield
    except RequestFailure:
        raise
    except CLIPFinetuningError as error:
        raise RequestFailure(422, "invalid_request", str(error), param) from None
