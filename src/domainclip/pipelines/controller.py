"""``CLIPFinetuningController``: builds the parts from a recipe and runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.given import GivenImages, GivenTexts
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.records import ImageTextPair, usable_rows
from domainclip.data.sources.loaders import DatasetLoader
from domainclip.data.sources.torch_datasets import RowsByNumber
from domainclip.devices import DeviceManager, MemoryManager
from domainclip.errors import ConfigurationError, InputTypeError, ModelNotInitializedError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.protocols import EvaluationResult
from domainclip.events import Listener
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.metrics.metric import METRICS
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.pipelines.assemble import training_data
from domainclip.pipelines.auto_resolution import AutoResolution
from domainclip.pipelines.fine_tune import Processes, fine_tune, load_for_training, resolve_run
from domainclip.pipelines.output_lock import locked_output
from domainclip.pipelines.reference_sets import with_reference_sets
from domainclip.pipelines.run_folder import RunFolder, paths_read
from domainclip.registry import nearest
from domainclip.resolve import Decision, ResolvedInference, ResolvedRun, resolve_for_inference
from domainclip.tracking import notebook_display, usual_console
from domainclip.training.distributed import OneProcess
from domainclip.training.memory.plan import StepCounter, batch_that_fits
from domainclip.words import counted

Pairs = Sequence[ImageTextPair | tuple[str | Path, str]] | CLIPDataset | DataLoader | RowsByNumber
"""Rows: pairs, a ``CLIPDataset``, or a torch data set or loader of one's own (see ``DatasetLoader.from_torch``)."""


class CLIPFinetuningController:
    """Load a model, use it, fine-tune it, evaluate it.

    ``model`` (a ``DualEncoder``) and ``processor`` are None before ``setup()``; encoding then raises
    ``ModelNotInitializedError`` (a ``RuntimeError``).

    ``processes``: this one is among several (``torchrun``) that train together. All of them must call ``fine_tune``;
    the first alone validates and writes.
    """

    def __init__(
        self,
        config: CLIPFinetuningConfig | ResolvedInference | None = None,
        console: Console | None = None,
        processes: Processes | None = None,
    ) -> None:
        if config is not None and not isinstance(config, CLIPFinetuningConfig | ResolvedInference):
            raise InputTypeError(
                f"config is a {type(config).__name__}: give a CLIPFinetuningConfig, which from_dict and from_yaml make"
            )
        self.processes = processes or OneProcess()
        self._resolved = config if isinstance(config, ResolvedInference) else None
        self.config = (config.recipe if isinstance(config, ResolvedInference) else config) or CLIPFinetuningConfig()
        self._in_a_console = console is not None
        self.console = console or usual_console()
        self.run: ResolvedRun | None = None
        self._loaded: ModelSession | None = None
        self._auto_resolution = AutoResolution()
        self._status = "not_initialized"

    # --- setting up ---

    def setup(self) -> None:
        """Choose the device and load the model onto it.

        Raises:
            DeviceError: The device cannot be used.
            ModelLoadError: The model cannot be had.
            ConfigurationError: The loss type is unknown, or the precision or the optimizer is refused.
            MissingExtraError: The recipe needs a package that is not installed.
        """
        self._loaded = load_for_training(self._resolved or resolve_for_inference(self.config), self.console)
        self.config = self._loaded.config
        self._status = "ready"

    def unload(self) -> None:
        """Forget the model, so that its memory is free for another one."""
        self._loaded, self._status = None, "not_initialized"

    @property
    def session(self) -> ModelSession:
        """The loaded model.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
        """
        if self._loaded is None:
            raise ModelNotInitializedError("Model not initialized: call setup() first")
        return self._loaded

    @property
    def model(self) -> DualEncoder | None:
        return self._loaded.encoder if self._loaded else None

    @property
    def processor(self) -> EncoderProcessor | None:
        return self._loaded.processor if self._loaded else None

    @property
    def recipe(self) -> FrozenConfig | None:
        return self.run.recipe if self.run else None

    @property
    def decisions(self) -> list[Decision]:
        """What nobody had set, each with its reason; empty before a training."""
        return list(self.run.decisions) if self.run else []

    @property
    def device(self) -> torch.device:
        return self.session.device

    def get_model_state(self) -> dict[str, Any]:
        """What is loaded, where, and how far it is.

        Returns:
            ``status`` (not_initialized, ready, training, trained), device, precision, model and its size in parameters;
            None for what is not known before ``setup()``.
        """
        loaded, model = self._loaded, self.model
        manager = loaded.device_manager if loaded else None
        return {
            "status": self._status,
            "model_name": self.config.model_name,
            "domain": self.config.domain,
            "device_type": manager.device.type if manager else None,
            "device_reason": manager.reason if manager else None,
            "is_apple_silicon": manager.is_apple_silicon if manager else None,
            "precision": loaded.precision.name if loaded else None,
            "parameters": sum(p.numel() for p in model.parameters()) if model else None,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad) if model else None,
        }

    def determine_batch_size(self) -> int:
        """Pairs a step.

        Returns:
            The recipe's ``batch_size``, or the most (a power of two up to 256) that memory holds at once, counted on
            the loaded model; before ``setup()`` an estimate for CLIP ViT-B/32.
        """
        if self.config.batch_size is not None:
            return self.config.batch_size
        if self._loaded is None:
            return MemoryManager(DeviceManager(self.config.use_mps, self.config.device).device).optimal_batch_size
        loaded = self._loaded
        recipe = self.recipe or self.config
        native = loaded.encoder.native_resolution
        counter = StepCounter(loaded.encoder, recipe, recipe, recipe, loaded.device, loaded.precision)
        resolution = recipe.image_resolution if recipe.is_set("image_resolution") else native
        return batch_that_fits(counter, recipe.largest_resolution(resolution))

    # --- using the model ---

    def engine(self, batch_size: int | None = None) -> EmbeddingEngine:
        """An inference engine over the present weights; see ``ModelSession.engine``.

        Args:
            batch_size: Images or texts encoded at once; the recipe's ``eval_batch_size``, if left out.

        Returns:
            The engine. It sees weights that change later.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
        """
        return self.session.engine(batch_size)

    def encode_text(self, texts: GivenTexts) -> Float[Tensor, "n dim"]:
        """Embed texts.

        Args:
            texts: Texts; what the domain does to captions is done to them first.

        Returns:
            Unit-length text embeddings, float32 on the CPU.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: There are no texts, or one is no string.
        """
        return self.session.encode_texts(texts)

    def encode_image(self, images: GivenImages) -> Float[Tensor, "n dim"]:
        """Embed images.

        Args:
            images: One image or many, as for ``ModelSession.encode_images``.

        Returns:
            Unit-length image embeddings, float32 on the CPU.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: There are no images.
        """
        return self.session.encode_images(images)

    def encode_texts(self, texts: GivenTexts) -> Float[Tensor, "n dim"]:
        """As ``encode_text``: a controller is what evaluators and retrieval ask for embeddings.

        Args:
            texts: As for ``encode_text``.

        Returns:
            Unit-length text embeddings, float32 on the CPU.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: There are no texts, or one is no string.
        """
        return self.session.encode_texts(texts)

    def encode_images(self, images: GivenImages) -> Float[Tensor, "n dim"]:
        """As ``encode_image``, of files (read as training reads them), opened images and arrays alike.

        Args:
            images: As for ``ModelSession.encode_images``.

        Returns:
            Unit-length image embeddings, float32 on the CPU.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            ImageError: An image cannot be read, or an array is no image.
            DataError: There are no images.
        """
        return self.session.encode_images(images)

    def compute_similarity(self, text: list[str], images: GivenImages) -> Float[Tensor, "images texts"]:
        """Similarity of every image to every text by the recipe's ``similarity_metric``.

        Args:
            text: One text or many, the columns.
            images: One image or many, the rows.

        Returns:
            Similarities, the larger the more alike.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: There are no images or no texts.
        """
        return self.session.similarity(images, text)

    # --- training and evaluating ---

    def prepare(
        self, train_pairs: Sequence[ImageTextPair], resume_from: Path | None = None, validation_rows: int = 0
    ) -> FrozenConfig:
        """Resolve the recipe for this model and these rows; ``run`` is then the resolved run.

        Args:
            train_pairs: The training rows.
            resume_from: The folder of a run that goes on, where ``auto_resolution`` finds what it chose at first.
            validation_rows: Rows of the validation split.

        Returns:
            The resolved recipe.

        Raises:
            DataError: The rows offer nothing to contrast.
            ConfigurationError: A value does not fit the model or the rows.
        """
        asked = (self.config, self.session, train_pairs, self.processes)
        self.run = resolve_run(*asked, resume_from, self._auto_resolution, validation_rows)
        return self.run.recipe

    def fine_tune(
        self,
        train_dataset: Pairs,
        val_dataset: Pairs | None = None,
        output_path: str | Path | None = None,
        *,
        resume: bool = False,
        engine: EmbeddingEngine | None = None,
        listeners: Sequence[Listener] = (),
    ) -> dict[str, Any]:
        """Train, keep the weights of the best validation, and save them, or with ``wise_ft`` weights between those and
        the initial ones, to ``output_path/model``. Rows and settings are looked at anew each time.

        Args:
            train_dataset: Pairs, a ``CLIPDataset`` (used as it is, with its own transforms), or a torch ``Dataset`` or
                ``DataLoader`` of your own (see ``DatasetLoader.from_torch``).
            val_dataset: Likewise, a ``CLIPDataset``'s pairs alone; without it the last weights are kept.
            output_path: The run's folder; the recipe's ``output_dir``, if left out.
            resume: Go on from the newest checkpoint in the folder.
            engine: Embeds the validation rows; a new one, if left out.
            listeners: Called with each event of the training (see ``domainclip.events``), in the first of several
                processes; one may raise ``StopRun`` to stop.

        Returns:
            ``train_loss`` (mean over the steps), ``training_time`` (seconds), ``steps``, ``samples_per_second``,
            ``best``, ``model_path``, ``trade_off``, ``warnings`` and more.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: The rows offer nothing to contrast.
            ConfigurationError: The folder holds a run, or the recipe does not fit the model or the rows.
            Interrupted: A signal has stopped the training, which was saved.
        """
        folder = RunFolder(output_path or self.config.output_dir)
        if not resume and folder.checkpoints.exists():
            raise ConfigurationError(
                f"{folder.path} already holds a run: pass resume=True to go on, or another output_path"
            )
        pairs, val = self._rows(train_dataset), self._rows(val_dataset)
        with ExitStack() as held:
            if self.processes.is_first:
                held.enter_context(locked_output(folder.path, "output_path", self.console.print))
                folder.claim(resume, inputs=paths_read(self.config))
                held.callback(folder.end)
            displays = held.enter_context(notebook_display(not self._in_a_console and self.processes.is_first))
            return self._fine_tune(train_dataset, pairs, val, folder, resume, engine, [*listeners, *displays])

    def _fine_tune(
        self,
        given: Pairs,
        pairs: Sequence[ImageTextPair],
        val: Sequence[ImageTextPair],
        folder: RunFolder,
        resume: bool,
        engine: EmbeddingEngine | None,
        listeners: Sequence[Listener],
    ) -> dict[str, Any]:
        session = self.session
        self.prepare(pairs, folder.path if resume else None, len(val))
        assert self.run is not None
        data = given if isinstance(given, CLIPDataset) else training_data(pairs, self.run, session)
        self.run, sets = with_reference_sets(session, self.run, self.processes.is_first)
        self._status = "training"
        if self.processes.is_first:
            folder.begin()
        result = fine_tune(
            session,
            self.run,
            data,
            val,
            folder,
            resume=resume,
            engine=engine,
            listeners=listeners,
            reference_sets=sets,
            processes=self.processes,
            console=self.console,
        )
        if self.processes.is_first:
            folder.tidy(self.run.recipe.keep_checkpoints)
        self._status = "trained"
        return result

    def evaluate(self, pairs: Sequence[ImageTextPair], engine: EmbeddingEngine | None = None) -> EvaluationResult:
        """Classification (where there are labels) and retrieval on these rows, with the domain metrics.

        Args:
            pairs: Rows to evaluate on.
            engine: Embeds them; a new one, if left out.

        Returns:
            Metrics with their details.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            DataError: The rows allow no evaluation.
        """
        return build_evaluator(self.session, pairs, domain_metrics=True).evaluate(engine or self.engine())

    def evaluate_on_domain(self, test_dataset: Pairs, domain_metrics: Sequence[str] | None = None) -> dict[str, float]:
        """The metrics asked for (``accuracy``, ``f1_score``, ``i2t_R@1``, ``macro_auroc``, …), or all there are.

        Args:
            test_dataset: As ``val_dataset`` of ``fine_tune``.
            domain_metrics: Names of metrics; all that the rows give, if left out.

        Returns:
            Values by name, without intervals.

        Raises:
            ModelNotInitializedError: ``setup()`` was not called.
            ConfigurationError: A name is asked for that these rows do not give ("Invalid metric").
            DataError: The rows allow no evaluation.
        """
        if isinstance(domain_metrics, str):
            domain_metrics = [domain_metrics]
        pairs = self._rows(test_dataset)
        evaluator = build_evaluator(self.session, pairs, domain_metrics=True, intervals=False)
        metrics = METRICS.with_other_names(evaluator.evaluate(self.engine()).metrics)
        if domain_metrics is None:
            return metrics
        unknown = [name for name in domain_metrics if name not in metrics]
        if unknown:
            guess = nearest(unknown[0], metrics)
            hint = f"did you mean {guess!r}? These" if guess else "these"
            raise ConfigurationError(f"Invalid metric {unknown[0]!r}: {hint} rows give {', '.join(sorted(metrics))}")
        return {name: metrics[name] for name in domain_metrics}

    def _rows(self, dataset: Pairs | None) -> list[ImageTextPair]:
        if dataset is None:
            return []
        if isinstance(dataset, CLIPDataset):
            return list(dataset.pairs)
        if isinstance(dataset, list | tuple):
            pairs = [ImageTextPair.checked(pair, row) for row, pair in enumerate(dataset)]
        elif isinstance(dataset, str | Path | Mapping):
            raise InputTypeError(
                f"Rows are given as a list of (image path, caption) or a data set, not as {dataset!r:.80}: read a "
                "table or a folder with DatasetLoader.load"
            )
        else:
            spec = ImageSpec.from_processor(self.session.processor.image_processor)
            found = DatasetLoader.from_torch(cast(RowsByNumber, dataset), spec=spec, strict=self.config.strict)
            if found.skipped:
                self.console.print(
                    f"Data: {counted(len(found.skipped), 'item')} of {found.source} skipped, the first: "
                    f"{found.skipped[0]}",
                    markup=False,
                )
            pairs = list(found)
        if not pairs:
            return []
        usable, skipped = usable_rows(pairs, self.config.strict)
        if skipped:
            self.console.print(
                f"Data: {counted(len(skipped), 'row', 'are')} skipped, the first: {skipped[0]}", markup=False
            )
        return [pairs[row] for row in usable]
