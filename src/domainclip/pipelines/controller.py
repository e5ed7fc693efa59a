"""``CLIPFinetuningController``: builds the parts from a recipe and runs them."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import asdict, replace
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
from domainclip.data.images.reader import ImageLike
from domainclip.data.records import ImageTextPair
from domainclip.devices import DeviceManager, MemoryManager
from domainclip.errors import ConfigurationError, DataError, ModelNotInitializedError
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.evaluators import EvaluationResult
from domainclip.events import Emitter, Listener, Milestone
from domainclip.inference import EmbeddingEngine, ModelSession
from domainclip.losses import build_loss
from domainclip.metrics.metric import METRICS
from domainclip.models import DualEncoder, EncoderProcessor
from domainclip.models.facts import model_facts
from domainclip.models.io import load_weights
from domainclip.models.lora import require_peft
from domainclip.pipelines.assemble import (
    apply_attention,
    apply_recipe,
    build_probe,
    classification_of,
    hard_negative_finder,
    training_data,
    validation_by,
    write_model,
)
from domainclip.pipelines.auto_resolution import AutoResolution
from domainclip.pipelines.reference_sets import ReferenceSets, load_reference_sets
from domainclip.pipelines.wise_ft import apply_trade_off, check_trade_off, evaluator_of
from domainclip.registry import load_plugins
from domainclip.resolve import (
    Decision,
    ResolvedInference,
    ResolvedRun,
    contrastive_batch,
    resolve,
    resolve_for_inference,
)
from domainclip.resolve.facts import data_facts
from domainclip.similarity import BilinearSimilarity
from domainclip.tracking import ConsoleListener, MetricsFile
from domainclip.training import TrainContext, TrainingParts, build_trainer
from domainclip.training.distributed import OneProcess, ProcessGroup
from domainclip.training.memory.plan import batch_that_fits
from domainclip.training.optim.choice import check_optimizer
from domainclip.training.regularization.initial_weights import initial_weights
from domainclip.training.signals import StopSignals
from domainclip.training.step.train_step import FurtherTerms
from domainclip.training.step.views import view_resolutions

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
        config: CLIPFinetuningConfig | ResolvedInference | None = None,
        console: Console | None = None,
        processes: ProcessGroup | OneProcess | None = None,
    ) -> None:
        self.processes = processes or OneProcess()
        self._resolved = config if isinstance(config, ResolvedInference) else None
        self.config = (config.recipe if isinstance(config, ResolvedInference) else config) or CLIPFinetuningConfig()
        self.console = console or Console(stderr=True)
        self.run: ResolvedRun | None = None
        self.decisions: list[Decision] = []
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
        resolved = self._resolved or resolve_for_inference(self.config)
        config = self.config = resolved.recipe
        load_plugins(config.plugins)
        build_loss(resolved.objective)
        if config.lora_r is not None:
            require_peft()
        manager = DeviceManager(config.use_mps, config.device)
        check_optimizer(config.optimizer, manager.device)
        self._loaded = ModelSession.load(resolved, self.console, manager)
        self._status = "ready"

    def unload(self) -> None:
        """Forget the model, so that its memory is free for another one."""
        self._loaded, self._status = None, "not_initialized"

    @property
    def session(self) -> ModelSession:
        """The loaded model. Raises ``ModelNotInitializedError`` before ``setup()``."""
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
    def device(self) -> torch.device:
        return self.session.device

    def get_model_state(self) -> dict[str, Any]:
        """``status`` (not_initialized, ready, training, trained), device, model and its size."""
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
        """Pairs a step: the recipe's ``batch_size``, or the most (a power of two up to 256) that memory holds at once,
        counted on the loaded model; before ``setup()`` an estimate for CLIP ViT-B/32."""
        if self.config.batch_size is not None:
            return self.config.batch_size
        if self._loaded is None:
            return MemoryManager(DeviceManager(self.config.use_mps, self.config.device).device).optimal_batch_size
        loaded = self._loaded
        return batch_that_fits(loaded.encoder, self.recipe or self.config, loaded.device, loaded.precision)

    # --- using the model ---

    def engine(self, batch_size: int | None = None) -> EmbeddingEngine:
        """An inference engine over the present weights; see ``ModelSession.engine``."""
        return self.session.engine(batch_size)

    def encode_text(self, texts: list[str]) -> Float[Tensor, "n dim"]:
        """Unit-length text embeddings, float32 on the CPU."""
        return self.session.encode_texts(texts)

    def encode_image(self, images: list[Image.Image]) -> Float[Tensor, "n dim"]:
        """Unit-length image embeddings, float32 on the CPU."""
        return self.session.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """As ``encode_text``: a controller is what evaluators and retrieval ask for embeddings."""
        return self.session.encode_texts(texts)

    def encode_images(self, images: Sequence[ImageLike]) -> Float[Tensor, "n dim"]:
        """As ``encode_image``, of files (read as training reads them), opened images and arrays alike."""
        return self.session.encode_images(images)

    def compute_similarity(self, text: list[str], images: list[Image.Image]) -> Float[Tensor, "images texts"]:
        """Similarity of every image to every text by the recipe's ``similarity_metric``."""
        return self.session.similarity(images, text)

    # --- training and evaluating ---

    def prepare(self, train_pairs: Sequence[ImageTextPair], resume_from: Path | None = None) -> FrozenConfig:
        """Resolve the recipe for this model and these rows; sets ``run`` and ``decisions``. ``resume_from``: the
        folder of a run that goes on, where ``auto_resolution`` finds what it chose at first."""
        session = self.session
        if len(train_pairs) < 2:
            raise DataError(f"No valid image-text pairs to contrast: {len(train_pairs)} row for training, 2 are needed")
        where = (session.device, session.precision)
        config, chosen = self._auto_resolution.select(self.config, session.encoder, train_pairs, *where, resume_from)
        facts = model_facts(session.encoder), data_facts(train_pairs, self.processes.world_size)
        run = resolve(config, *facts, domain=session.domain)
        # What was measured may have come out differently in another process: the first one's choices hold.
        self.run = run = self.processes.broadcast_object(replace(run, decisions=(*chosen, *run.decisions)))
        self.decisions = list(run.decisions)
        by_label = run.recipe.positives == "label"
        if len({(by_label and pair.label) or pair.caption for pair in train_pairs}) == 1:
            raise DataError(
                f"Every training row has the same {'label' if by_label else 'caption'}: there is nothing to tell "
                "apart. Add rows of other kinds"
            )
        session.resolved = run
        return run.recipe

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
        session = self.session
        encoder, device, precision = session.encoder, session.device, session.precision
        folder = Path(output_path or self.config.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        if not resume and (folder / "checkpoints").exists():
            raise ConfigurationError(f"{folder} already holds a run: pass resume=True to go on, or another output_path")
        pairs = train_dataset.pairs if isinstance(train_dataset, CLIPDataset) else list(train_dataset)
        # Anew each time: rows and settings may have changed since.
        recipe = self.prepare(pairs, folder if resume else None)
        run = self.run
        assert run is not None
        data = train_dataset if isinstance(train_dataset, CLIPDataset) else training_data(pairs, run, session)
        val = val_dataset.pairs if isinstance(val_dataset, CLIPDataset) else list(val_dataset or ())
        check_trade_off(recipe, len(val))
        evaluator = evaluator_of(session, val, "validation") if val else None
        kept = reference_sets
        if kept is None and (self.processes.is_first or recipe.rehearsal_strength):
            kept = load_reference_sets(session)
        if kept is not None:
            self.decisions = kept.explained(self.decisions)
        reference_sets = kept if self.processes.is_first else None  # the others rehearse, and validate nothing
        encoder.remove_adapters()  # of a run that did not end
        start = initial_weights(encoder, recipe, as_loaded=session.as_loaded)
        if start is not None and start.encoder is not None:
            self.console.print(f"distillation_strength: a frozen copy is kept, {start.copy_bytes / 2**20:.0f} MiB")
        apply_recipe(encoder, recipe, self.console)
        apply_attention(encoder, recipe, device, precision, self.console)
        # MPS keeps memory for every shape it has seen: a few lengths only.
        multiple = 16 if device.type == "mps" else 1
        loader = create_training_loader(data, recipe, contrastive_batch(recipe), pad_to_multiple=multiple)
        loss = build_loss(run.objective, encoder.embedding_dim).to(device)
        if scales := getattr(loss, "resolution_scales", None):
            for resolution in loader.batch_sampler.plan.resolutions:  # type: ignore[union-attr]
                view_resolutions(encoder, resolution, scales)  # an error now, not at the first step
        validation_engine = engine or session.engine()
        metric = next((module for module in loss.modules() if isinstance(module, BilinearSimilarity)), None)
        validation_engine.text_map = metric.map_texts if metric is not None else None
        validation_engine.expect([pair.image_path for pair in val])
        if reference_sets is not None:
            reference_sets.engine.text_map = validation_engine.text_map
        validate = validation_by(evaluator, validation_engine, reference_sets) if evaluator is not None else None
        autocast = partial(precision.autocast, device)
        find_hard_negatives = None
        if recipe.hard_negative_batch_fraction > 0:
            fast = session.engine(autocast=autocast)
            fast.text_map = validation_engine.text_map
            find_hard_negatives = hard_negative_finder(data, recipe, fast)
        rehearsal = kept.rehearsed(encoder, recipe, autocast) if kept is not None else None
        probe = build_probe(encoder, run, loss, data, val, device, precision, rehearsal)
        torch.manual_seed(recipe.seed + self.processes.rank)  # their own dropout
        context = TrainContext(folder, processes=self.processes, emitter=self._emitter(folder, listeners))
        parts = TrainingParts(
            evaluate=validate,
            terms=FurtherTerms(start, classification_of(encoder, run, data, device, precision), rehearsal),
            probe_first=probe if recipe.probe_first else None,
            probe_last=probe if recipe.probe_last else None,
            find_hard_negatives=find_hard_negatives,
            may_freeze_batch_norm=not self.config.is_set("freeze_batch_norm"),
            domain_digest=run.domain.digest(),
        )
        stop = StopSignals(self.console)
        trainer = build_trainer(context, encoder, loss, loader, recipe, device, precision, parts, stop)
        if reference_sets is not None and not resume:
            scores = {f"val_{name}": value for name, value in reference_sets.during().items()}
            context.emitter.emit(Milestone(name="references", step=0, values=scores))
        self._status, session.as_loaded = "training", False
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
                loss.load_state_dict(torch.load(folder / "best" / "loss.pt", map_location=device))
        if metric is not None:  # from here on the plain cosine says what the learned metric said
            encoder.absorb_text_map(metric.weight)
        trade_off = self.processes.on_first(
            lambda: apply_trade_off(session, start, pairs, val, validation_engine, reference_sets, self.console)
        )
        if reference_sets is not None:
            scores = {f"saved_{name}": value for name, value in reference_sets.during().items()}
            context.emitter.emit(Milestone(name="references", step=result.steps, values=scores))
        self.processes.on_first(lambda: write_model(encoder, folder, run.domain))
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

    def evaluate(self, pairs: Sequence[ImageTextPair], engine: EmbeddingEngine | None = None) -> EvaluationResult:
        """Zero-shot classification (where there are labels) and retrieval on these rows, with the domain metrics."""
        return build_evaluator(self.session, pairs, domain_metrics=True).evaluate(engine or self.engine())

    def evaluate_on_domain(self, test_dataset: Pairs, domain_metrics: Sequence[str] | None = None) -> dict[str, float]:
        """The metrics asked for (``accuracy``, ``f1_score``, ``i2t_R@1``, ``macro_auroc``, …), or all there are.

        Raises ``ConfigurationError`` "Invalid metric" for a name that this data set does not give.
        """
        pairs = test_dataset.pairs if isinstance(test_dataset, CLIPDataset) else list(test_dataset)
        evaluator = build_evaluator(self.session, pairs, domain_metrics=True, intervals=False)
        metrics = METRICS.with_other_names(evaluator.evaluate(self.engine()).metrics)
        if domain_metrics is None:
            return metrics
        unknown = [name for name in domain_metrics if name not in metrics]
        if unknown:
            raise ConfigurationError(f"Invalid metric {unknown[0]!r}: these rows give {', '.join(sorted(metrics))}")
        return {name: metrics[name] for name in domain_metrics}
