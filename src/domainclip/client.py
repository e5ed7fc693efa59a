"""A client of the service (``domainclip serve``): each of its calls as a typed method.

Needs neither torch nor the server's packages; speaks by ``httpx2``, which the extra ``serve`` brings.
"""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps

from domainclip.errors import (
    CLIPFinetuningError,
    ConfigurationError,
    ImageError,
    InputTypeError,
    MissingExtraError,
    MissingImageError,
)

if TYPE_CHECKING:
    import httpx2

ImageInput = str | Path | bytes | Image.Image | np.ndarray
"""The path of a file or an https address, the bytes of a file, an image of PIL's, or uint8 ``[h, w]``, ``[h, w, 3]`` or
``[h, w, 4]``."""

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 2.0  # seconds, where the service does not say how long
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class ItemError:
    """Why one item of a request has no result.

    Attributes:
        index: Of the item in its list.
        input: The list: "images", "texts", "pairs" or "input".
        code: For programs, such as "image_truncated".
        message: For people.
    """

    index: int
    input: str
    code: str
    message: str


class ServiceError(CLIPFinetuningError, RuntimeError):
    """The service has refused a request, has failed, or cannot be reached.

    Args:
        message: What was wrong, and what to do.
        status: Of HTTP; None where there was no answer.
        code: For programs, as the service names it.
        request_id: By which the service's log knows the request.
        errors: Of the items, where each of them failed or ``strict`` was asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        errors: Sequence[ItemError] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.errors = tuple(errors)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What every answer has.

    Attributes:
        model: Which model has answered.
        errors: Of items that have no result.
        request_id: By which the service's log knows the request.
        queue_ms: Milliseconds that the request waited for the model; None where the service does not say.
    """

    model: str
    errors: tuple[ItemError, ...]
    request_id: str | None
    queue_ms: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Similarity(Answer):
    """How near each image is to each text; NaN where one of them failed."""

    similarity: Float32[np.ndarray, "images texts"]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairScores(Answer):
    """How near the two of each pair are; NaN where a pair failed."""

    scores: Float32[np.ndarray, " pairs"]


@dataclass(frozen=True)
class Prediction:
    """The class of one image.

    Attributes:
        label: None where no class is probable enough.
        probability: Of the most probable class, from 0 to 1.
        probabilities: By class, of the ``top_k`` most probable ones.
    """

    label: str | None
    probability: float
    probabilities: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Classification(Answer):
    """A prediction for each image; None where an image failed."""

    predictions: tuple[Prediction | None, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings(Answer):
    """A row for each item; NaN where an item failed. ``prompt_tokens`` counts those of the texts."""

    embeddings: Float32[np.ndarray, "n dim"]
    prompt_tokens: int


@dataclass(frozen=True)
class SearchHit:
    """An image of the index.

    Attributes:
        image: Its path, as the index has it.
        score: Its similarity to the query.
        label: Its class, where the index has one.
        caption: Its caption, where the index has one.
    """

    image: str
    score: float
    label: str | None
    caption: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class SearchHits(Answer):
    """The images nearest to the query, the nearest first. ``reranked`` rows were compared exactly."""

    hits: tuple[SearchHit, ...]
    reranked: int


@dataclass(frozen=True)
class Readiness:
    """How the service is.

    Attributes:
        status: "ready", "loading", "warming", "draining" or "unhealthy".
        detail: Why, in words.
        model: Which model it serves.
        fingerprint: Of the model.
        backend: What computes.
        cosine: Of the last check, of the golden image to what it has to give.
        checked_seconds_ago: When that check was.
    """

    status: str
    detail: str
    model: str | None
    fingerprint: str | None
    backend: str | None
    cosine: float | None
    checked_seconds_ago: float | None

    @property
    def is_ready(self) -> bool:
        """Whether requests are answered now."""
        return self.status == "ready"


class Client:
    """Calls a service; may be used by several threads. Close it, or use it in a ``with`` statement.

    A request that the service puts off (429, and 503 while a model loads) is sent again after the time that the answer
    names, as long as that is within ``timeout``; one whose connection breaks before an answer is sent again once, since
    no request changes anything.

    Args:
        base_url: Of the service.
        api_key: Where the service asks for one.
        timeout: Seconds for a call, with all its retries.
        retries: How often a request that was put off is sent again at most; 0: nothing is sent again.
        priority: "bulk" for work in large amounts, which lets interactive requests go first.
        transport: What carries the requests in place of the network, for tests.

    Raises:
        ConfigurationError: A value is out of range.
        MissingExtraError: ``httpx2`` is not installed.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 10,
        priority: Literal["interactive", "bulk"] = "interactive",
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        if not timeout > 0:
            raise ConfigurationError(f"timeout must be positive, got {timeout}: give seconds, such as 30")
        if retries < 0:
            raise ConfigurationError(f"retries must be 0 or more, got {retries}")
        try:
            import httpx2
        except ImportError:
            raise MissingExtraError("httpx2", "serve", "The client of the service") from None
        self._httpx2 = httpx2
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self.base_url, self.timeout, self.retries, self.priority = base_url.rstrip("/"), timeout, retries, priority
        address = httpx2.URL(self.base_url)
        if address.scheme not in ("http", "https") or not address.host:
            raise ConfigurationError(f"Invalid base_url {base_url!r}: give one such as http://127.0.0.1:8000")
        # Proxies of the environment are for the web.
        self._http = httpx2.Client(base_url=address, headers=headers, transport=transport, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def similarity(self, texts: Sequence[str], images: Sequence[ImageInput], *, strict: bool = False) -> Similarity:
        """Compare each image with each text.

        Args:
            texts: At least one.
            images: At least one.
            strict: Raise where an item fails.

        Returns:
            A matrix ``[images, texts]``.

        Raises:
            ServiceError: The service refuses the request, every item fails, or with ``strict`` one of them.
            ImageError: An image cannot be read here, ``InputTypeError`` where it is of another type.
        """
        body = {"texts": list(texts), "images": [_sendable(image) for image in images]}
        content, common = self._post("/v1/similarity", body, strict)
        # JSON's null becomes NaN.
        return Similarity(
            **common, similarity=np.array(content["similarity"], np.float32).reshape(len(images), len(texts))
        )

    def pairs(self, pairs: Sequence[tuple[ImageInput, str]], *, strict: bool = False) -> PairScores:
        """Compare each image with its own text.

        Args:
            pairs: Images with texts.
            strict: Raise where a pair fails.

        Returns:
            A score for each pair.

        Raises:
            ServiceError: The service refuses the request, every pair fails, or with ``strict`` one of them.
            ImageError: An image cannot be read here, ``InputTypeError`` where it is of another type.
        """
        body = {"pairs": [{"image": _sendable(image), "text": text} for image, text in pairs]}
        content, common = self._post("/v1/pairs", body, strict)
        return PairScores(**common, scores=np.array(content["scores"], np.float32))

    def classify(
        self,
        images: Sequence[ImageInput],
        labels: Sequence[str] | None = None,
        top_k: int | None = None,
        threshold: float = 0.0,
        *,
        strict: bool = False,
    ) -> Classification:
        """Find the class of each image.

        Args:
            images: At least one.
            labels: The classes; None for the model's own.
            top_k: For how many classes probabilities are given; None for all.
            threshold: The least probability, from 0 to 1, with which a label is named.
            strict: Raise where an image fails.

        Returns:
            A prediction for each image.

        Raises:
            ServiceError: The service refuses the request, every image fails, or with ``strict`` one of them.
            ImageError: An image cannot be read here, ``InputTypeError`` where it is of another type.
        """
        body = {
            "images": [_sendable(image) for image in images],
            "labels": None if labels is None else list(labels),
            "top_k": top_k,
            "threshold": threshold,
        }
        content, common = self._post("/v1/classify", body, strict)
        predictions = tuple(
            None if found is None else Prediction(found["label"], found["probability"], found["probabilities"])
            for found in content["predictions"]
        )
        return Classification(**common, predictions=predictions)

    def embed_texts(self, texts: Sequence[str], dimensions: int | None = None, *, strict: bool = False) -> Embeddings:
        """Embed texts.

        Args:
            texts: At least one.
            dimensions: The first so many numbers of each embedding; None for all. The model must allow it.
            strict: Raise where a text fails.

        Returns:
            Rows of length 1.

        Raises:
            ServiceError: The service refuses the request, every text fails, or with ``strict`` one of them.
        """
        return self._embed([{"text": text} for text in texts], "text", dimensions, strict)

    def embed_images(
        self, images: Sequence[ImageInput], dimensions: int | None = None, *, strict: bool = False
    ) -> Embeddings:
        """Embed images.

        Args:
            images: At least one.
            dimensions: The first so many numbers of each embedding; None for all. The model must allow it.
            strict: Raise where an image fails.

        Returns:
            Rows of length 1.

        Raises:
            ServiceError: The service refuses the request, every image fails, or with ``strict`` one of them.
            ImageError: An image cannot be read here, ``InputTypeError`` where it is of another type.
        """
        return self._embed([{"image": _sendable(image)} for image in images], "image", dimensions, strict)

    def search(
        self,
        text: str | None = None,
        image: ImageInput | None = None,
        top_k: int = 10,
        where: Sequence[str] = (),
    ) -> SearchHits:
        """Find the images of the service's index that fit a text or an image.

        Args:
            text: The query, or
            image: the query.
            top_k: How many images.
            where: Conditions, such as "label=crack": only rows that fulfil all of them.

        Returns:
            The nearest first.

        Raises:
            ConfigurationError: There is no query, or there are two.
            ServiceError: The service refuses the request, has no index, or cannot read the image.
            ImageError: The image cannot be read here, ``InputTypeError`` where it is of another type.
        """
        if (text is None) == (image is None):
            raise ConfigurationError("A search takes one query: give a text or an image")
        query: dict[str, Any] = {"text": text} if image is None else {"image": _sendable(image)}
        content, common = self._post("/v1/search", {**query, "top_k": top_k, "where": list(where)}, strict=False)
        hits = tuple(
            SearchHit(hit["image"], hit["score"], hit.get("label"), hit.get("caption")) for hit in content["hits"]
        )
        return SearchHits(**common, hits=hits, reranked=content["reranked"])

    def models(self) -> list[str]:
        """Ask which models there are.

        Returns:
            Their names.

        Raises:
            ServiceError: The service refuses the request.
        """
        return [model["id"] for model in _json(self._call("GET", "/v1/models", None))["data"]]

    def ready(self) -> Readiness:
        """Ask how the service is; answers at once, be it ready or not.

        Returns:
            Its state.

        Raises:
            ServiceError: It cannot be reached, or is none of this kind.
        """
        response = self._send("GET", "/health/ready", None, monotonic() + self.timeout)
        content = _json(response)
        if response.status_code not in (200, 503) or "status" not in content:
            raise _error_of(response)
        return Readiness(
            status=str(content["status"]),
            detail=str(content.get("detail") or ""),
            model=content.get("model"),
            fingerprint=content.get("fingerprint"),
            backend=content.get("backend"),
            cosine=content.get("cosine"),
            checked_seconds_ago=content.get("checked_seconds_ago"),
        )

    # --- how ---

    def _embed(
        self, items: Sequence[Mapping[str, Any]], modality: str, dimensions: int | None, strict: bool
    ) -> Embeddings:
        body: dict[str, Any] = {"input": list(items), "modality": modality, "encoding_format": "base64"}
        if dimensions is not None:
            body["dimensions"] = dimensions
        content, common = self._post("/v1/embeddings", body, strict)
        rows = {
            row["index"]: np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
            for row in content["data"]
            if row["embedding"] is not None
        }
        embeddings = np.full((len(items), max(map(len, rows.values()), default=0)), np.nan, np.float32)
        for index, row in rows.items():
            embeddings[index] = row
        return Embeddings(**common, embeddings=embeddings, prompt_tokens=content["usage"]["prompt_tokens"])

    def _post(self, path: str, body: Mapping[str, Any], strict: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        """The answer's content, and what it shares with all answers."""
        response = self._call("POST", path, {**body, "priority": self.priority})
        content = _json(response)
        errors = _item_errors(content)
        request_id = response.headers.get("X-Request-Id")
        if strict and errors:
            first = errors[0]
            raise ServiceError(
                f"{len(errors)} of the items failed, the first of them {first.input}[{first.index}]: {first.message}",
                status=response.status_code,
                code=first.code,
                request_id=request_id,
                errors=errors,
            )
        waited = response.headers.get("X-Queue-Ms")
        return content, {
            "model": content["model"],
            "errors": errors,
            "request_id": request_id,
            "queue_ms": None if waited is None else float(waited),
        }

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        """Send until there is an answer that counts; see the class."""
        deadline = monotonic() + self.timeout
        content = None if body is None else json.dumps(body).encode("ascii")
        for attempt in range(self.retries + 1):
            response = self._send(method, path, content, deadline)
            if response.is_success:
                return response
            wait = _wait_of(response, attempt)
            if response.status_code not in (429, 503) or attempt == self.retries:
                break
            if monotonic() + wait >= deadline:
                break
            sleep(wait)
        raise _error_of(response)

    def _send(self, method: str, path: str, content: bytes | None, deadline: float) -> httpx2.Response:
        """One request; a second one where the connection breaks before the answer."""
        httpx2 = self._httpx2
        headers = {} if content is None else {"Content-Type": "application/json"}
        again = self.retries > 0
        while True:
            left = max(deadline - monotonic(), 0.001)
            try:
                return self._http.request(method, path, content=content, headers=headers, timeout=left)
            except httpx2.ConnectError as error:
                raise ServiceError(
                    f"There is no service at {self.base_url} ({error}). Start one with `domainclip serve`, or give "
                    "another base_url"
                ) from None
            except httpx2.TimeoutException:
                raise ServiceError(
                    f"The service at {self.base_url} has not answered within {self.timeout:g} s: give it more time "
                    "(timeout), or less work at once"
                ) from None
            except (httpx2.TransportError, httpx2.DecodingError) as error:
                if not again or not isinstance(error, httpx2.NetworkError | httpx2.RemoteProtocolError):
                    raise ServiceError(f"The connection to {self.base_url} has failed: {error}") from None
            again = False


def _sendable(image: ImageInput) -> str | dict[str, str]:
    """An image as the interface takes it: base64, or an address."""
    if isinstance(image, str) and image.startswith(("https://", "http://")):
        return {"url": image}
    return base64.b64encode(_file_of(image)).decode("ascii")


def _file_of(image: ImageInput) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        try:
            return Path(image).read_bytes()
        except FileNotFoundError:
            raise MissingImageError(f"{image}: no such file") from None
        except (OSError, ValueError) as error:
            raise ImageError(f"{image} cannot be read: {error}") from None
    if isinstance(image, np.ndarray):
        shape = image.shape
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and shape[2] in (3, 4))) or 0 in shape:
            raise InputTypeError(
                f"An image as an array is uint8 [h, w], [h, w, 3] or [h, w, 4], got {image.dtype} {shape}"
            )
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputTypeError(
            f"An image is a path, bytes, an image of PIL's or an array of numpy's, got a {type(image).__name__}"
        )
    upright = ImageOps.exif_transpose(image)  # a PNG would not carry how the camera was held
    if upright.mode not in _PNG_MODES:
        upright = upright.convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _json(response: httpx2.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise ServiceError(
            f"{response.url} has answered with status {response.status_code} and no JSON object: is it a service of "
            "domainclip's?",
            status=response.status_code,
            request_id=response.headers.get("X-Request-Id"),
        )
    return content


def _item_errors(content: Mapping[str, Any]) -> tuple[ItemError, ...]:
    return tuple(
        ItemError(error["index"], error["input"], error["code"], error["message"])
        for error in content.get("errors") or ()
    )


def _error_of(response: httpx2.Response) -> ServiceError:
    content = _json(response)
    error = content.get("error")
    if not isinstance(error, dict):
        error = {"message": f"{response.url} has answered with status {response.status_code}"}
    return ServiceError(
        str(error.get("message")),
        status=response.status_code,
        code=error.get("code"),
        request_id=response.headers.get("X-Request-Id"),
        errors=_item_errors(content),
    )


def _wait_of(response: httpx2.Response, attempt: int) -> float:
    """Seconds until the next attempt: a little more than asked, by chance, so that not all clients come at once."""
    try:
        asked = float(response.headers["Retry-After"])
    except (KeyError, ValueError):  # not named, or as a date
        asked = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT)
    return max(asked, 0.0) + random.uniform(0, 0.1 * max(asked, _FIRST_WAIT))
