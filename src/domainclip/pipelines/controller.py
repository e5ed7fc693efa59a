"""``CLIPFinetuningController``: builds the parts from a recipe and runs them."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.data.batches import create_training_loader
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.devices import DeviceManager, MemoryManager
from domainclip.devices.precision import PrecisionDecision, choose_precision
from domainclip.errors import ConfigurationError, DataError, ModelNotInitializedError
from domainclip.evaluation.evaluators import DomainEvaluator, EvaluationResult
from domainclip.events import Emitter, Listener, Milestone
from domainclip.inference import EmbeddingEngine
from domainclip.losses import build_loss
from domainclip.models import DualEncoder, EncoderProcessor, load_encoder
from domainclip.models.io import load_weights
from domainclip.models.lora import require_peft
from domainclip.pipelines.apply_recipe import apply_recipe
from domainclip.pipelines.attention import apply_attention
from domainclip.pipelines.auto_resolution import AutoResolution
from domainclip.pipelines.captions import caption_pipeline, domain_evaluator, training_captions
from domainclip.pipelines.domain_metrics import build_domain_metrics
from domainclip.pipelines.domain_record import with_models_domain
from domainclip.pipelines.facts import data_facts, model_facts
from domainclip.pipelines.hard_negatives import hard_negative_finder
from domainclip.pipelines.plugins import load_plugins
from domainclip.pipelines.probe import build_probe, classification_of
from domainclip.pipelines.reference_sets import ReferenceSets, load_reference_sets
from domainclip.pipelines.semantics import semantic_scores
from domainclip.pipelines.validation import validation_by
from domainclip.pipelines.wise_ft import apply_trade_off, check_trade_off, evaluator_of
from domainclip.pipelines.write_model import write_model
from domainclip.resolve import Decision, contrastive_batch, resolve
from domainclip.similarity import BilinearSimilarity, make_similarity
from domainclip.tracking import ConsoleListener, MetricsFile
from domainclip.training import TrainContext, TrainingParts, build_trainer
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.memory.plan import batch_that_fits
from domainclip.training.optim.choice import check_optimizer
from domainclip.training.regularization.initial_weights import initial_weights
from domainclip.training.signals import StopSignals
from domainclip.training.step.train_step import FurtherTerms
from domainclip.training.step.views import view_resolutions

log = logging.getLogger(__name__)

Pairs = Sequence[ImageTextPair] | CLIPDataset


class CLIPFinetuningController:
    """Load a model, use it, fine-tune it, evaluate it.

    ``model`` (a ``DualEncoder``) and ``processor`` are None before ``setup()``; encoding then raises
    ``ModelNotInitializedError`` (a ``RuntimeError``).

    ``processes``: this one is among several (``torchrun``) that train together. All of them must call ``fine_tune``;
    the first alone validates and writes.
    """

    def __init__(
        self,
        config: CLIPFinetuningConfig | None = None,
        console: Console | None = None,
        processes: ProcessGroup | OneProcess | None = None,
    ) -> None:
        self.processes = processes or OneProcess()
        self.config = config or CLIPFinetuningConfig()
        self.console = console or Console(stderr=True)
        self.model: DualEncoder | None = None
        self.processor: EncoderProcessor | None = None
        self.device_manager: DeviceManager | None = None
        self.precision: PrecisionDecision | None = None
        self.recipe: FrozenConfig | None = None
        self.decisions: list[Decision] = []
        self._auto_resolution = AutoResolution()
        self._status = "not_initialized"

    # --- setting up ---

    def setup(self) -> None:
        """Choose the device and load the model onto it.

        Raises ``DeviceError``, ``ModelLoadError``, ``ConfigurationError`` (unknown loss type, refused precision or
        optimizer), ``MissingExtraError``.
        """
        self.config, note = with_models_domain(self.config)
        if note:
            self.console.print(note, markup=False)
        config = self.config
        load_plugins(config.plugins)
        build_loss(config)
        if config.lora_r is not None:
            require_peft()
        manager = DeviceManager(config.use_mps, config.device)
        check_optimizer(config.optimizer, manager.device)
        self.precision = choose_precision(manager.device, config.precision, config.mixed_precision)
        manager.optimize_for_device()
        encoder = load_encoder(config)
        self.device_manager = manager
        self.model = encoder.to(manager.device)
        encoder.optimize_layout(manager.device)
        if manager.device.type == "mps" and self.precision.name != "fp32":
            encoder.avoid_fused_text_attention()
        self.processor = encoder.processor
        self._status = "ready"

    def _encoder(self) -> DualEncoder:
        if self.model is None:
            raise ModelNotInitializedError("Model not initialized: call setup() first")
        return self.model

    @property
    def device(self) -> torch.device:
        if self.device_manager is None:
            raise ModelNotInitializedError("Model not initialized: call setup() first")
        return self.device_manager.device

    def get_model_state(self) -> dict[str, Any]:
        """``status`` (not_initialized, ready, training, trained), device, model and its size."""
        manager = self.device_manager
        return {
            "status": self._status,
            "model_name": self.config.model_name,
            "domain": self.config.domain,
            "device_type": manager.device.type if manager else None,
            "device_reason": manager.reason if manager else None,
            "is_apple_silicon": manager.is_apple_silicon if manager else None,
            "precision": self.precision.name if self.precision else None,
            "parameters": sum(p.numel() for p in self.model.parameters()) if self.model else None,
            "trainable_parameters": (
                sum(p.numel() for p in self.model.parameters() if p.requires_grad) if self.model else None
            ),
        }

    def determine_batch_size(self) -> int:
        """Pairs a step: the recipe's ``batch_size``, or the most (a power of two up to 256) that memory holds at once,
        counted on the loaded model; before ``setup()`` an estimate for CLIP ViT-B/32."""
        if self.config.batch_size is not None:
            return self.config.batch_size
        if self.model is None or self.precision is None:
            return MemoryManager(DeviceManager(self.config.use_mps, self.config.device).device).optimal_batch_size
        return batch_that_fits(self.model, self.recipe or self.config, self.device, self.precision)

    # --- using the model ---

    def engine(self, batch_size: int | None = None, autocast: Callable[[], Any] | None = None) -> EmbeddingEngine:
        """An inference engine over the present weights, in float32 unless ``autocast`` is given: figures that are
        reported do not depend on what the device rounds to."""
        config = self.recipe or self.config
        return EmbeddingEngine(
            self._encoder(),
            self.device,
            batch_size=batch_size or config.eval_batch_size,
            resolution=config.image_resolution if config.is_set("image_resolution") else None,
            max_length=config.max_sequence_length if config.is_set("max_sequence_length") else None,
            max_pixels=config.max_image_pixels,
            autocast=autocast,
            preprocessing=config.image_steps(),
            text_transform=caption_pipeline(config, self._encoder().processor),
        )

    def encode_text(self, texts: list[str]) -> Float[Tensor, "n dim"]:
        """Unit-length text embeddings, float32 on the CPU."""
        return self.engine().encode_texts(texts)

    def encode_image(self, images: list[Image.Image]) -> Float[Tensor, "n dim"]:
        """Unit-length image embeddings, float32 on the CPU."""
        return self.engine().encode_images(images)

    def compute_similarity(self, text: list[str], images: list[Image.Image]) -> Float[Tensor, "images texts"]:
        """Similarity of every image to every text by the recipe's ``similarity_metric``."""
        # A learned metric is in the weights already, where it is the cosine.
        metric = "cosine" if self.config.similarity_metric == "bilinear" else self.config.similarity_metric
        return make_similarity(metric)(self.encode_image(images), self.encode_text(text))

    # --- training and evaluating ---

    def prepare(self, train_pairs: Sequence[ImageTextPair], resume_from: Path | None = None) -> FrozenConfig:
        """Resolve the recipe for this model and these rows; sets ``recipe`` and ``decisions``. ``resume_from``: the
        folder of a run that goes on, where ``auto_resolution`` finds what it chose at first."""
        encoder = self._encoder()
        if len(train_pairs) < 2:
            raise DataError(f"No valid image-text pairs to contrast: {len(train_pairs)} row for training, 2 are needed")
        assert self.precision is not None
        where = (self.device, self.precision)
        config, chosen = self._auto_resolution.select(self.config, encoder, train_pairs, *where, resume_from)
        recipe, decisions = resolve(config, model_facts(encoder), data_facts(train_pairs, self.processes.world_size))
        # What was measured may have come out differently in another process: the first one's choices hold.
        self.recipe, self.decisions = self.processes.broadcast_object((recipe, chosen + decisions))
        by_label = self.recipe.positives == "label"
        if len({(by_label and pair.label) or pair.caption for pair in train_pairs}) == 1:
            raise DataError(
                f"Every training row has the same {'label' if by_label else 'caption'}: there is nothing to tell "
                "apart. Add rows of other kinds"
            )
        return self.recipe

    def training_data(self, pairs: Sequence[ImageTextPair]) -> CLIPDataset:
        """The training rows, augmented as the resolved recipe says."""
        assert self.recipe is not None and self.processor is not None
        spec = ImageSpec.from_processor(self.processor.image_processor)
        recipe = self.recipe
        transform = ImageTransform(
            recipe, recipe.augment_images, spec, recipe.largest_resolution(recipe.image_resolution)
        )
        return CLIPDataset(pairs, self.processor, recipe, transform, **training_captions(recipe, self.processor))

    def fine_tune(
        self,
        train_dataset: Pairs,
        val_dataset: Pairs | None = None,
        output_path: str | Path | None = None,
        *,
        resume: bool = False,
        engine: EmbeddingEngine | None = None,
        listeners: Sequence[Listener] = (),
        reference_sets: ReferenceSets | None = None,
    ) -> dict[str, Any]:
        """Train, keep the weights of the best validation, and save them, or with ``wise_ft`` weights between those and
        the starting ones, to ``output_path/model``.

        ``train_dataset``: pairs, or a ``CLIPDataset`` (used as it is, with its own transforms). Without
        ``val_dataset`` the last weights are kept. ``listeners`` are called with each event of the training (see
        ``domainclip.events``), in the first of several processes; one may raise ``StopRun`` to stop.
        ``reference_sets``: the sets of ``retention_data``, for a caller who has them already.
        Returns ``train_loss`` (mean over the steps), ``training_time`` (seconds), ``steps``, ``samples_per_second``,
        ``best``, ``model_path``, ``trade_off``, ``warnings`` and more.
        """
        encoder = self._encoder()
        assert self.precision is not None
        folder = Path(output_path or self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and (folder / "checkpoints").exists():
            raise ConfigurationError(f"{folder} already holds a run: pass resume=True to go on, or another output_path")
        pairs = train_dataset.pairs if isinstance(train_dataset, CLIPDataset) else list(train_dataset)
        # Anew each time: rows and settings may have changed since.
        recipe = self.prepare(pairs, folder if resume else None)
        data = train_dataset if isinstance(train_dataset, CLIPDataset) else self.training_data(pairs)
        val = val_dataset.pairs if isinstance(val_dataset, CLIPDataset) else list(val_dataset or ())
        check_trade_off(recipe, len(val))
        evaluator = evaluator_of(self, val, "validation") if val else None
        kept = reference_sets
        if kept is None and (self.processes.is_first or recipe.rehearsal_strength):
            kept = load_reference_sets(self)
        reference_sets = kept if self.processes.is_first else None  # the others rehearse, and validate nothing
        encoder.remove_adapters()  # of a run that did not end
        start = initial_weights(encoder, recipe, as_loaded=self._status == "ready")
        if start is not None and start.encoder is not None:
            self.console.print(f"distillation_strength: a frozen copy is kept, {start.copy_bytes / 2**20:.0f} MiB")
        apply_recipe(encoder, recipe, self.console)
        apply_attention(encoder, recipe, self.device, self.precision, self.console)
        # MPS keeps memory for every shape it has seen: a few lengths only.
        multiple = 16 if self.device.type == "mps" else 1
        loader = create_training_loader(data, recipe, contrastive_batch(recipe), pad_to_multiple=multiple)
        loss = build_loss(recipe, encoder.embedding_dim).to(self.device)
        if scales := getattr(loss, "resolution_scales", None):
            for resolution in loader.batch_sampler.plan.resolutions:  # type: ignore[union-attr]
                view_resolutions(encoder, resolution, scales)  # an error now, not at the first step
        validation_engine = engine or self.engine()
        metric = next((module for module in loss.modules() if isinstance(module, BilinearSimilarity)), None)
        validation_engine.text_map = metric.map_texts if metric is not None else None
        if reference_sets is not None:
            reference_sets.engine.text_map = validation_engine.text_map
        validate = validation_by(evaluator, validation_engine, reference_sets) if evaluator is not None else None
        find_hard_negatives = None
        if recipe.hard_negative_batch_fraction > 0:
            precision, device = self.precision, self.device
            fast = self.engine(autocast=lambda: precision.autocast(device))
            fast.text_map = validation_engine.text_map
            find_hard_negatives = hard_negative_finder(data, recipe, fast)
        autocast = partial(self.precision.autocast, self.device)
        rehearsal = kept.rehearsed(encoder, recipe, autocast) if kept is not None else None
        probe = build_probe(encoder, recipe, loss, data, val, self.device, self.precision, rehearsal)
        torch.manual_seed(recipe.seed + self.processes.rank)  # their own dropout
        context = TrainContext(folder, processes=self.processes, emitter=self._emitter(folder, listeners))
        classification = classification_of(encoder, recipe, data, self.device, self.precision)
        parts = TrainingParts(
            evaluate=validate,
            terms=FurtherTerms(start, classification, rehearsal),
            probe_first=probe if recipe.probe_first else None,
            probe_last=probe if recipe.probe_last else None,
            find_hard_negatives=find_hard_negatives,
            may_freeze_batch_norm=not self.config.is_set("freeze_batch_norm"),
        )
        trainer = build_trainer(
            context, encoder, loss, loader, recipe, self.device, self.precision, parts, StopSignals(self.console)
        )
        if reference_sets is not None and not resume:
            scores = {f"val_{name}": value for name, value in reference_sets.during().items()}
            context.emitter.emit(Milestone(name="references", step=0, values=scores))
        self._status = "training"
        try:
            result = trainer.train(resume=resume)
        finally:
            validation_engine.text_map = None
            if reference_sets is not None:
                reference_sets.engine.text_map = None
            # The trainer refers to itself, and holds the optimizer and the decoded images: gone now, not whenever
            # Python next looks for cycles, so that many runs in one process need the memory of one.
            del trainer, loader
            gc.collect()
        encoder.merge_adapters()
        if result.best is not None and (folder / "best").is_dir():
            load_weights(encoder, folder / "best")
            if (folder / "best" / "loss.pt").is_file():
                loss.load_state_dict(torch.load(folder / "best" / "loss.pt", map_location=self.device))
        if metric is not None:  # from here on the plain cosine says what the learned metric said
            encoder.absorb_text_map(metric.weight)
        trade_off = self.processes.on_first(
            lambda: apply_trade_off(self, start, pairs, val, validation_engine, reference_sets)
        )
        if reference_sets is not None:
            scores = {f"saved_{name}": value for name, value in reference_sets.during().items()}
            context.emitter.emit(Milestone(name="references", step=result.steps, values=scores))
        self.processes.on_first(lambda: write_model(encoder, folder, recipe.domain_config()))
        encoder.eval()
        self._status = "trained"
        return asdict(result) | {"model_path": str(folder / "model"), "trade_off": trade_off}

    def _emitter(self, folder: Path, listeners: Sequence[Listener]) -> Emitter:
        emitter = Emitter()
        if self.processes.is_first:
            emitter.add(MetricsFile(folder / "metrics.jsonl", emitter.warn))
            emitter.add(ConsoleListener(self.console))
            for listener in listeners:
                emitter.add(listener)
        return emitter

    def evaluator(
        self, pairs: Sequence[ImageTextPair], *, domain_metrics: bool = False, intervals: bool = True
    ) -> DomainEvaluator:
        """``domain_metrics``: also give the metrics of the domain, with ``intervals`` unless that is turned off, and
        those of documents, a class hierarchy and the domain's terminology where the recipe or the domain names them."""
        config = self.recipe or self.config
        domain_figures = build_domain_metrics(config, self._encoder(), intervals=intervals) if domain_metrics else None
        semantics = semantic_scores(config, pairs, self.engine(), intervals=intervals) if domain_metrics else None
        return domain_evaluator(config, pairs, self._encoder().processor, domain_figures, semantics)

    def evaluate(self, pairs: Sequence[ImageTextPair], engine: EmbeddingEngine | None = None) -> EvaluationResult:
        """Zero-shot classification (where there are labels) and retrieval on these rows, with the domain metrics."""
        return self.evaluator(pairs, domain_metrics=True).evaluate(engine or self.engine())

    def evaluate_on_domain(self, test_dataset: Pairs, domain_metrics: Sequence[str] | None = None) -> dict[str, float]:
        """The metrics asked for (``accuracy``, ``f1_score``, ``i2t_R@1``, ``macro_auroc``, …), or all there are.

        Raises ``ConfigurationError`` "Invalid metric" for a name that this data set does not give.
        """
        pairs = test_dataset.pairs if isinstance(test_dataset, CLIPDataset) else list(test_dataset)
        metrics = self.evaluator(pairs, domain_metrics=True, intervals=False)(self.engine())
        if domain_metrics is None:
            return metrics
        unknown = [name for name in domain_metrics if name not in metrics]
        if unknown:
            raise ConfigurationError(f"Invalid metric {unknown[0]!r}: these rows give {', '.join(sorted(metrics))}")
        return {name: metrics[name] for name in domain_metrics}
