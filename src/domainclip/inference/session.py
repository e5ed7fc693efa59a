"""``ModelSession``: a loaded model with its preparation of images and texts, ready to be used."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import overload

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.images.given import GivenImage, GivenImages, GivenTexts, is_one_image, text_list
from domainclip.data.images.store import ImageStore
from domainclip.data.readers import refuse_within_a_reader
from domainclip.devices import DeviceManager
from domainclip.devices.precision import PrecisionDecision, choose_precision
from domainclip.domains.domain import DomainConfig
from domainclip.domains.recipes import write_domain
from domainclip.errors import ConfigurationError
from domainclip.files import replaced_directory
from domainclip.inference.backends.choice import choose_backend
from domainclip.inference.backends.golden import GoldenBatch
from domainclip.inference.backends.graphs import fingerprint_of, model_folder
from domainclip.inference.backends.model_graphs import ModelGraphs
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.inference.backends.torch_encoder import golden_batch
from domainclip.inference.captions import caption_pipeline
from domainclip.inference.classifier import Classifier, Prediction
from domainclip.inference.engine import EmbeddingEngine
from domainclip.inference.fingerprint import space_fingerprint
from domainclip.inference.model_record import ModelRecord
from domainclip.inference.prompts import class_prompts, classifier_weights
from domainclip.models import DualEncoder, EncoderProcessor, load_encoder
from domainclip.models.io import save_encoder, weights_digest
from domainclip.models.source.files import CONFIG
from domainclip.registry import load_plugins
from domainclip.resolve import ResolvedInference, resolve_for_inference
from domainclip.similarity import make_similarity
from domainclip.waiting import Progress


class ModelSession:
    """A loaded model, and how images and texts are prepared for it.

    It encodes, compares and classifies; evaluators, retrieval and services need nothing else. It knows no training.

    Args:
        encoder: The model, on its device.
        resolved: The recipe with its domain, which say how images and texts are prepared.
        device_manager: The device and why it was chosen.
        precision: What training computes in. Embeddings are in float32 unless an engine is asked for otherwise.
        images: Where decoded images of files are kept; a store as large as the recipe says, if left out.
        record: The classes and the temperature of the run that the model is from.

    Attributes:
        resolved: A run puts its own here, so that what is encoded later is prepared as in training.
        as_loaded: Whether the weights still are those that the recipe's model names.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        resolved: ResolvedInference,
        device_manager: DeviceManager,
        precision: PrecisionDecision,
        images: ImageStore | None = None,
        record: ModelRecord | None = None,
    ) -> None:
        self.encoder, self.resolved = encoder, resolved
        self.record = record or ModelRecord()
        self.device_manager, self.precision = device_manager, precision
        self.images = images or ImageStore(self.config.image_cache_mb * 2**20, self.config.max_image_pixels)
        self.as_loaded = True
        self.console: Console | None = None
        self._chosen: tuple[ResolvedInference, FixedShapes] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config.model_name!r}, domain={self.domain.name!r}, device={self.device})"

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | ResolvedInference,
        console: Console | None = None,
        device_manager: DeviceManager | None = None,
        images: ImageStore | None = None,
    ) -> ModelSession:
        """Choose the device and load a model onto it.

        Args:
            model: The folder of a saved model (``outputs/mine/model``) or a name on the Hugging Face Hub; or a recipe
                with its domain, where more than the model is chosen. A model that a run saved brings its domain along.
            console: Where it is said if the domain is one that the model was trained in; standard error, if left out.
            device_manager: The device, for a caller who has chosen it already.
            images: A store of decoded images that is shared with other sessions.

        Returns:
            The session.

        Raises:
            DeviceError: The device cannot be used.
            ModelLoadError: The model cannot be had, is no dual encoder, or its record of the run is damaged.
            ConfigurationError: A plugin fails, the precision is refused, or the domain's file is wrong.
        """
        refuse_within_a_reader()
        if isinstance(model, ResolvedInference):
            resolved = model
        else:
            resolved = resolve_for_inference(CLIPFinetuningConfig(model_name=str(model)))
        config = resolved.recipe
        if resolved.note:
            (console or Console(stderr=True)).print(resolved.note, markup=False)
        load_plugins(config.plugins)
        manager = device_manager or DeviceManager(config.use_mps, config.device)
        precision = choose_precision(manager.device, resolved.memory.precision, resolved.memory.mixed_precision)
        manager.optimize_for_device()
        with Progress(None, "Loading the model"):
            encoder = load_encoder(resolved.model).to(manager.device)
            encoder.optimize_layout(manager.device)
        if manager.device.type == "mps" and precision.name != "fp32":
            encoder.avoid_fused_text_attention()
        session = cls(encoder, resolved, manager, precision, images, ModelRecord.read(Path(config.model_name)))
        session.console = console
        return session

    @property
    def config(self) -> CLIPFinetuningConfig:
        """The recipe; of a run the resolved one."""
        return self.resolved.recipe

    @property
    def domain(self) -> DomainConfig:
        """What the recipe's domain says."""
        return self.resolved.domain

    @property
    def processor(self) -> EncoderProcessor:
        """The model's tokenizer and image processor."""
        return self.encoder.processor

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.device_manager.device

    @property
    def backend(self) -> FixedShapes:
        """What the session's own methods encode by, as the recipe's ``backend`` says; chosen at the first use.

        Raises:
            ConfigurationError: There is no such back end.
            MissingExtraError: It is not installed.
            BackendError: It is refused for this model.
        """
        if self.as_loaded and self._chosen is not None and self._chosen[0] is self.resolved:
            return self._chosen[1]
        graphs = self._graphs()
        if not self.as_loaded:  # a graph would be that of the weights before the training
            return graphs.torch()
        choice = choose_backend(graphs, self.config.backend)
        if self.config.is_set("backend"):
            self._say(choice.reason)
        self._chosen = self.resolved, choice.shapes
        return choice.shapes

    def golden_batch(self) -> GoldenBatch:
        """What every back end of the model must give.

        Returns:
            The batch saved beside the model, or a new one where that is missing or of other weights.
        """
        return self._graphs().golden

    def _graphs(self) -> ModelGraphs:
        return ModelGraphs(self.encoder, self.resolved.model, self.engine().spec, self.device, self._say)

    def _say(self, text: str) -> None:
        (self.console or Console(stderr=True)).print(text, markup=False, highlight=False, soft_wrap=True)

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "console": None, "_chosen": None}  # another process chooses for itself

    def engine(
        self,
        batch_size: int | None = None,
        autocast: Callable[[], AbstractContextManager[object]] | None = None,
        images: ImageStore | None = None,
        backend: FixedShapes | None = None,
    ) -> EmbeddingEngine:
        """An engine over the present weights.

        Args:
            batch_size: Images or texts encoded at once; the recipe's ``eval_batch_size``, if left out.
            autocast: Makes the context to compute in. Without it everything is in float32, so that figures that are
                reported do not depend on what the device rounds to.
            images: Another store of decoded images than the session's.
            backend: What encodes in place of the model itself, such as the session's.

        Returns:
            The engine. Without a back end it sees weights that change later.
        """
        config = self.config
        return EmbeddingEngine(
            self.encoder,
            self.device,
            batch_size=batch_size or config.eval_batch_size,
            resolution=config.image_resolution if config.is_set("image_resolution") else None,
            max_length=config.max_sequence_length if config.is_set("max_sequence_length") else None,
            images=self.images if images is None else images,
            autocast=autocast,
            preprocessing=self.domain.images,
            text_transform=caption_pipeline(self.resolved, self.processor),
            backend=backend,
        )

    def encode_images(self, images: GivenImages) -> Float[Tensor, "images dim"]:
        """Embed images.

        Args:
            images: One image or many: paths, PIL images, arrays ``[height, width]`` or ``[height, width, 3]`` of any
                depth, tensors ``[3, height, width]``, bytes of files, or files opened in binary mode, mixed as you
                like. Fractions within 0…1 mean black to white. A file has the same embedding whichever way it comes,
                as far as Pillow and the array hold it.

        Returns:
            Embeddings of unit length, float32 on the CPU.

        Raises:
            ImageError: An image cannot be read, or an array is no image.
            DataError: There are no images.
        """
        nothing_kept = ImageStore(0, self.config.max_image_pixels)  # of what a user shows
        return self.engine(images=nothing_kept, backend=self.backend).encode_images(images)

    def encode_texts(self, texts: GivenTexts) -> Float[Tensor, "texts dim"]:
        """Embed texts.

        Args:
            texts: One text or many; what a domain does to captions is done to them first.

        Returns:
            Embeddings of unit length, float32 on the CPU.

        Raises:
            DataError: There are no texts, or one is no string.
        """
        return self.engine(backend=self.backend).encode_texts(texts)

    def similarity(self, images: GivenImages, texts: GivenTexts) -> Float[Tensor, "images texts"]:
        """Compare every image with every text by the recipe's ``similarity_metric``.

        Args:
            images: As for ``encode_images``.
            texts: As for ``encode_texts``.

        Returns:
            Similarities, the larger the more alike.

        Raises:
            ImageError: An image cannot be read.
            DataError: There are no images or no texts.
        """
        # A learned metric is in the weights already, where it is the cosine.
        metric = "cosine" if self.config.similarity_metric == "bilinear" else self.config.similarity_metric
        return make_similarity(metric)(self.encode_images(images), self.encode_texts(texts))

    def encode_image(self, images: GivenImages) -> Float[Tensor, "images dim"]:
        """As ``encode_images``, which is what evaluators and retrieval ask for.

        Args:
            images: As there.

        Returns:
            Embeddings of unit length, float32 on the CPU.

        Raises:
            ImageError: An image cannot be read, or an array is no image.
            DataError: There are no images.
        """
        return self.encode_images(images)

    def encode_text(self, texts: GivenTexts) -> Float[Tensor, "texts dim"]:
        """As ``encode_texts``, which is what evaluators and retrieval ask for.

        Args:
            texts: As there.

        Returns:
            Embeddings of unit length, float32 on the CPU.

        Raises:
            DataError: There are no texts, or one is no string.
        """
        return self.encode_texts(texts)

    def class_prompts(self, labels: GivenTexts | None = None) -> dict[str, list[str]]:
        """The sentences that describe classes, by the prompts of the domain.

        Args:
            labels: As for ``classifier``.

        Returns:
            The sentences of each class.

        Raises:
            ConfigurationError: A label is empty, or none is given and the model brings none.
            DataError: There are no labels, or one is of a wrong type (then also a ``TypeError``).
        """
        if labels is None and not self.record.classes:
            raise ConfigurationError(
                f"{self.config.model_name} says nothing of classes: name those to choose from (labels), such as "
                "crack, dent"
            )
        names = text_list(self.record.classes if labels is None else labels)
        templates = self.resolved.evaluation.prompt_templates
        return class_prompts(names, templates, names_of=self.domain.prompts.names_of)

    def classifier(
        self, labels: GivenTexts | None = None, encode_texts: Callable[[list[str]], Tensor] | None = None
    ) -> Classifier:
        """Describe classes by the prompts of the domain, for any number of images.

        Args:
            labels: Names of classes, each counted once. Those that the domain knows are described by its names for
                them. Left out, the classes of the run that the model is from.
            encode_texts: Embeds the prompts; the session itself, if left out.

        Returns:
            What classifies embeddings.

        Raises:
            ConfigurationError: A label is empty, or none is given and the model brings none.
            DataError: There are no labels, or one is of a wrong type (then also a ``TypeError``).
        """
        prompts = self.class_prompts(labels)
        weights = classifier_weights(encode_texts or self.encode_texts, prompts)
        return Classifier(tuple(prompts), weights, self._probabilities)

    @overload
    def predict(  # type: ignore[overload-overlap]  # a string is a sequence of strings
        self, images: GivenImage, labels: GivenTexts | None = None, *, top_k: int | None = None, threshold: float = 0.0
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        images: Iterable[GivenImage],
        labels: GivenTexts | None = None,
        *,
        top_k: int | None = None,
        threshold: float = 0.0,
    ) -> list[Prediction]: ...
    def predict(
        self, images: GivenImages, labels: GivenTexts | None = None, *, top_k: int | None = None, threshold: float = 0.0
    ) -> Prediction | list[Prediction]:
        """Say which class each image shows, by the prompts of the domain.

        Args:
            images: As for ``encode_images``.
            labels: As for ``classifier``.
            top_k: How many classes are named for each image, the likeliest first; all, if left out.
            threshold: In 0…1. An image whose likeliest class is less probable has no ``label``.

        Returns:
            One prediction for one image, a list for several.

        Raises:
            ImageError: An image cannot be read.
            ConfigurationError: As for ``classifier``; or ``top_k`` or ``threshold`` is out of range.
            DataError: There are no images or no labels, or one is of a wrong type (then also a ``TypeError``).
        """
        single = is_one_image(images)
        classifier = self.classifier(labels)
        found = classifier(self.encode_images(images), top_k, threshold)
        return found[0] if single else found

    def save(self, folder: str | Path) -> None:
        """Write the model with its domain and classes, as a run does: plain ``transformers`` loads it, too.

        Args:
            folder: Made where it is not there; a model in it is replaced.

        Raises:
            ConfigurationError: It holds something else than a model.
            OSError: It cannot be written; what was there is as it was.
        """
        path = Path(folder).expanduser()
        if path.exists() and not (path / CONFIG).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigurationError(f"{path} holds something else than a model: give another folder")
        with replaced_directory(path) as temporary:
            save_encoder(self.encoder, temporary)
            write_domain(self.domain, temporary)
            self.record.write(temporary)
            golden_batch(self.encoder, self.device, fingerprint_of(temporary)).write(temporary)

    def fingerprint(self) -> str:
        """Digest the model and the way to it: embeddings of one fingerprint may be compared with each other.

        Returns:
            SHA-256 in hexadecimal digits.

        Raises:
            OSError: A file of the model cannot be read.
        """
        folder = model_folder(self.resolved.model) if self.as_loaded else None
        return space_fingerprint(self.resolved, fingerprint_of(folder) if folder else weights_digest(self.encoder))

    @property
    def temperature(self) -> float:
        """The model's own temperature at this time: what its cosines are divided by."""
        return math.exp(-float(self.encoder.logit_scale.detach()))

    def probabilities(self, cosines: Float[Tensor, "images classes"]) -> Float[Tensor, "images classes"]:
        """Turn cosines into the model's own probabilities, in float64.

        Args:
            cosines: Of images (rows) and classes.

        Returns:
            A softmax over the classes at the model's temperature, or for SigLIP a sigmoid of each class by itself.
        """
        return self._probabilities(cosines, calibrated=False)

    def _probabilities(self, cosines: Tensor, calibrated: bool = True) -> Tensor:
        encoder = self.encoder
        if calibrated and self.record.temperature is not None and not encoder.is_siglip:
            return torch.softmax(cosines.double() / self.record.temperature, dim=1)
        logits = cosines.double() * encoder.logit_scale.detach().double().exp().cpu()
        if not encoder.is_siglip:
            return torch.softmax(logits, dim=1)
        bias = encoder.logit_bias.detach().double().cpu() if encoder.logit_bias is not None else torch.zeros(())
        return torch.sigmoid(logits + bias)
