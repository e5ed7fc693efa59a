"""What requests and answers look like."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
"""A red image of one pixel."""
EXAMPLE_IMAGE = f"data:image/png;base64,{_PIXEL}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ImageUrl(_Strict):
    """An image by its address; a data URI, or https where the service allows the host."""

    url: str


KIND = "<"
"""Begins the names of kinds of a value, which stand in pydantic's errors beside the names of fields."""


def _kind_of_image(given: object) -> str:
    return "<url>" if isinstance(given, (dict, ImageUrl)) else "<text>"


Image = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[ImageUrl, Tag("<url>")],
    Discriminator(_kind_of_image),
    Field(description='Base64 of a file, a data URI, or `{"url": …}`.', examples=[EXAMPLE_IMAGE]),
]
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Images = Annotated[list[Image], Field(min_length=1, fail_fast=True)]


class ServiceRequest(_Strict):
    """What every request may say."""

    priority: Literal["interactive", "bulk"] = Field(
        "interactive", description="`bulk` work is done when nobody waits, and never starves."
    )
    timeout_ms: int | None = Field(
        None, ge=1, le=3_600_000, description="What cannot be answered within it is refused at once, or dropped."
    )
    model: str | None = Field(None, description="Not needed: the service has one model.")


class SimilarityRequest(ServiceRequest):
    """Images and texts, each to be compared with each."""

    texts: Texts = Field(examples=[["a cracked cell", "an intact cell"]])
    images: Images = Field(examples=[[EXAMPLE_IMAGE]])


class Pair(_Strict):
    """An image and a text."""

    image: Image
    text: str


class PairsRequest(ServiceRequest):
    """Images, each with the text that it is compared with."""

    pairs: list[Pair] = Field(
        min_length=1, fail_fast=True, examples=[[{"image": EXAMPLE_IMAGE, "text": "a cracked cell"}]]
    )


class ClassifyRequest(ServiceRequest):
    """Images to be classified."""

    images: Images = Field(examples=[[EXAMPLE_IMAGE]])
    labels: Texts | None = Field(
        None,
        description="Classes to choose from; left out, those of the model.",
        examples=[["crack", "ok"]],
    )
    top_k: int | None = Field(None, ge=1, description="How many classes are named for each image; all, if left out.")
    threshold: float = Field(0.0, ge=0, le=1, description="No label for what is less probable.")


class ContentPart(_Strict):
    """A text or an image among others."""

    type: Literal["text", "image_url", "image"] | None = None
    text: str | None = None
    image_url: Image | None = None
    image: Image | None = None

    @model_validator(mode="after")
    def _one(self) -> ContentPart:
        if sum(value is not None for value in (self.text, self.image_url, self.image)) != 1:
            raise ValueError("give exactly one of text, image_url, image")
        return self


class Message(_Strict):
    """A message of a chat, as which some clients send images."""

    role: str = "user"
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True), Tag("<parts>")],
        Discriminator(lambda given: "<parts>" if isinstance(given, list) else "<text>"),
    ]


TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]


def _kind_of_input(given: object) -> str:
    """What the first entry is, the others have to be."""
    if not isinstance(given, list):
        return "<text>" if given is not None else "<nothing>"
    first = given[0] if given else ""
    if isinstance(first, str):
        return "<texts>"
    if isinstance(first, (int, float)):
        return "<ids>"
    return "<lists of ids>" if isinstance(first, list) else "<parts>"


class EmbeddingsRequest(ServiceRequest):
    """OpenAI's request for embeddings, with images."""

    input: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[Texts, Tag("<texts>")]
        | Annotated[TokenIds, Tag("<ids>")]
        | Annotated[list[TokenIds], Field(min_length=1, fail_fast=True), Tag("<lists of ids>")]
        | Annotated[list[ContentPart], Field(min_length=1, fail_fast=True), Tag("<parts>")]
        | Annotated[None, Tag("<nothing>")],
        Discriminator(_kind_of_input),
    ] = Field(
        None,
        description="A text or a list of texts; of images with `modality: image`; of both as objects; or ids of tokens "
        "by the model's own tokenizer.",
        examples=[["a cracked cell", "an intact cell"]],
    )
    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)] | None = Field(
        None, description="Instead of `input`: one embedding a part."
    )
    modality: Literal["text", "image"] = Field("text", description="What the strings in `input` are.")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Only the model's own number: others are refused.")
    user: str | None = None

    @model_validator(mode="after")
    def _one(self) -> EmbeddingsRequest:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either input or messages")
        return self


class SearchRequest(ServiceRequest):
    """What is searched for in the index."""

    text: str | None = Field(None, examples=["a cracked cell"])
    image: Image | None = None
    top_k: int = Field(10, ge=1, le=1000)
    where: list[Annotated[str, Field(max_length=1000)]] = Field(
        [], max_length=16, fail_fast=True, description="Conditions such as `label=crack` or `path~line 3/`."
    )

    @model_validator(mode="after")
    def _one(self) -> SearchRequest:
        if (self.text is None) == (self.image is None):
            raise ValueError("give either text or image")
        return self


class ReloadRequest(_Strict):
    """Another model in place of the one that answers."""

    model: str | None = Field(None, description="Its folder; left out, the same one again.")
    index: str | None = Field(None, description="Its embeddings; left out, the same ones again.")


class ItemError(BaseModel):
    """Why one image or text has no result."""

    index: int
    input: Literal["images", "texts", "pairs", "input"]
    code: str
    message: str


class _Answer(BaseModel):
    model: str
    errors: list[ItemError] = []


class SimilarityResponse(_Answer):
    """Cosines, a row for each image and a column for each text; null where one of them has an error."""

    similarity: list[list[float | None]]


class PairsResponse(_Answer):
    """The cosine of each pair; null where it has an error."""

    scores: list[float | None]


class PredictionOut(BaseModel):
    """What the model says of one image."""

    label: str | None
    probability: float
    probabilities: dict[str, float]


class ClassifyResponse(_Answer):
    """A prediction for each image; null where it has an error."""

    predictions: list[PredictionOut | None]


class EmbeddingOut(BaseModel):
    """One embedding, of unit length."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Tokens of the texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(_Answer):
    """OpenAI's list of embeddings; an item with an error is left out, and named in `errors`."""

    object: Literal["list"] = "list"
    data: list[EmbeddingOut]
    usage: Usage


class HitOut(BaseModel):
    """An image of the index."""

    image: str
    score: float
    label: str | None
    caption: str | None


class SearchResponse(_Answer):
    """The nearest images, the best first, and of how many the cosine was computed exactly."""

    hits: list[HitOut]
    reranked: int


class ModelOut(BaseModel):
    """A model, as OpenAI's list has it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "domainclip"
    fingerprint: str
    backend: str
    dimensions: int
    classes: list[str]
    index_rows: int | None


class ModelsResponse(BaseModel):
    """The one model that answers."""

    object: Literal["list"] = "list"
    data: list[ModelOut]


class Readiness(BaseModel):
    """Whether requests are answered, and how the last golden check went."""

    status: Literal["loading", "warming", "ready", "draining", "unhealthy"]
    detail: str = ""
    model: str
    fingerprint: str | None = None
    backend: str | None = None
    cosine: float | None = None
    checked_seconds_ago: float | None = None


class ErrorBody(BaseModel):
    """What was wrong."""

    message: str
    type: str
    code: str | None
    param: str | None


class ErrorResponse(BaseModel):
    """OpenAI's error object."""

    error: ErrorBody
    errors: list[ItemError] = []


EXAMPLES: dict[str, dict[str, dict[str, object]]] = {
    "/v1/similarity": {
        "images and texts": {"texts": ["a cracked cell", "an intact cell"], "images": [EXAMPLE_IMAGE]},
    },
    "/v1/pairs": {"a pair": {"pairs": [{"image": EXAMPLE_IMAGE, "text": "a cracked cell"}]}},
    "/v1/classify": {
        "classes of the request": {"images": [EXAMPLE_IMAGE], "labels": ["crack", "ok"], "top_k": 1},
        "bulk work": {"images": [EXAMPLE_IMAGE], "labels": ["crack", "ok"], "priority": "bulk"},
    },
    "/v1/embeddings": {
        "texts": {"input": ["a cracked cell", "an intact cell"]},
        "images": {"input": [EXAMPLE_IMAGE], "modality": "image", "encoding_format": "base64"},
        "both": {"input": [{"text": "a cracked cell"}, {"image": EXAMPLE_IMAGE}]},
        "messages": {
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "a cracked cell"},
                        {"type": "image_url", "image_url": {"url": EXAMPLE_IMAGE}},
                    ],
                }
            ]
        },
    },
    "/v1/search": {
        "by a text": {"text": "a cracked cell", "top_k": 3},
        "by an image": {"image": EXAMPLE_IMAGE, "where": ["label!=ok"]},
    },
    "/admin/reload": {"the same model": {}},
}
"""What requests can look like, by path and by what they show."""
