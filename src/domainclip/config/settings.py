"""The groups of settings a recipe is composed of. Each function of the package asks for the group it reads, never for
the whole.

A default stated here is what holds when nothing better is known; ``config.resolve`` replaces the defaults of keys
the user left unset by what the model, the data and the device say, and gives the reason.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.config.domain_name import check_domain_name
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.loss_settings import TemperatureSettings
from domainclip.config.probe_settings import ProbeSettings
from domainclip.config.reference_settings import ReferenceSettings
from domainclip.config.resolution_settings import BatchScheduleSettings, ResolutionSettings
from domainclip.config.semantic_settings import SemanticSettings
from domainclip.config.text_preprocessing import TextPreprocessing

DEFAULT_TEMPLATES = (
    "a photo of a {}.",
    "a photo of the {}.",
    "an image of a {}.",
    "a close-up photo of a {}.",
    "a picture showing {}.",
    "{}",
)
"""Sentences a class is described by where the user gives none; {} stands for its label."""


class SeedSettings(Settings):
    seed: int = Field(
        default=42, ge=0, lt=2**32, description="Seed of every random choice: splits, order, augmentation, dropout."
    )


class ModelSettings(SeedSettings):
    model_name: str = Field(
        default="openai/clip-vit-base-patch32",
        min_length=1,
        description="Hub name or local directory of the model to start from (an OpenCLIP checkpoint: hf-hub:NAME, or "
        "a directory); 'tiny' makes a random one.",
    )
    vision_model_name: str | None = Field(default=None, description="Image backbone to join with text_model_name.")
    text_model_name: str | None = Field(default=None, description="Text backbone to join with vision_model_name.")
    save_open_clip: bool | None = Field(
        default=None, description="Write the model as an OpenCLIP checkpoint, too; null: where it was loaded from one."
    )
    freeze_batch_norm: bool | None = Field(
        default=None,
        description="Keep the stored batch-norm statistics in training; null: only where micro-batches need it.",
    )


class DataSettings(SeedSettings):
    domain: str = Field(
        default="general",
        description="A shipped domain (`domainclip domain list`) or the path of a YAML file: what images, captions, "
        "training and evaluation of a domain want.",
    )
    data_path: str = Field(
        default="data", min_length=1, description="A table, a directory, or a Hugging Face data set."
    )
    image_col: str = Field(default="image_path", min_length=1, description="Column (key) with the image's path.")
    caption_col: str = Field(default="caption", min_length=1, description="Column (key) with the caption.")
    label_col: str = Field(default="label", min_length=1, description="Column (key) with the class, if there is one.")
    group_col: str = Field(
        default="group", min_length=1, description="Column whose values never straddle splits (patient…)."
    )
    train_split: float = Field(
        default=0.8, gt=0, le=1, description="Fraction of rows for training where no split is given."
    )
    val_split: float = Field(default=0.1, ge=0, lt=1, description="Fraction for validation (chooses the checkpoint).")
    test_split: float = Field(default=0.1, ge=0, lt=1, description="Fraction for the test (only reported).")
    strict: bool = Field(default=False, description="Stop at the first bad image or row instead of skipping it.")
    max_image_pixels: int = Field(
        default=178_956_970,
        gt=0,
        le=178_956_970,
        description="Larger images are refused before decoding, in pixels.",
    )
    num_workers: int = Field(
        default=4, ge=0, le=128, description="Processes that read images; 0 reads beside the training."
    )
    image_cache_mb: int = Field(default=2048, ge=0, description="Memory for decoded images kept across epochs, in MiB.")
    shuffle: bool = Field(default=True, description="Draw the training rows in a new order each epoch.")
    image_resolution: int = Field(
        default=224, ge=16, le=4096, description="Resolution of the image given to the model, in pixels."
    )
    auto_resolution: bool = Field(
        default=False, description="Choose image_resolution from the images' sizes, the memory and wanted_throughput."
    )
    wanted_throughput: float | None = Field(
        default=None,
        gt=0,
        description="Images a second in training that auto_resolution keeps to; null: as many as it gets.",
    )
    max_sequence_length: int = Field(
        default=77, ge=4, le=8192, description="Longest caption in tokens; longer ones are cut."
    )
    positives: Literal["auto", "caption", "statement", "label"] = Field(
        default="auto",
        description="Rows that are each other's positives: equal caption, equal statement (case, punctuation, "
        "filler words and the order of phrases aside), or equal label.",
    )
    image_preprocessing: ImagePreprocessing | None = Field(
        default=None,
        description="Steps before the resize (window, border, light, contrast, tiles); null: the domain's.",
    )
    text_preprocessing: TextPreprocessing | None = Field(
        default=None, description="Steps before the tokenizer (spelling, abbreviations, length); null: the domain's."
    )
    augment_images: bool = Field(
        default=True, description="Random crops, flips where harmless, and light jitter in training."
    )
    augment_text: bool = Field(default=False, description="Also show the label as a prompt in place of some captions.")
    crop_scale: float = Field(
        default=0.7, gt=0, le=1, description="Smallest fraction of the image's area a random crop keeps."
    )
    horizontal_flip: bool = Field(default=False, description="Mirror left and right in augmentation.")
    vertical_flip: bool = Field(default=False, description="Mirror top and bottom in augmentation.")
    rotate90: bool = Field(default=False, description="Turn by multiples of 90 degrees in augmentation.")
    hard_negative_batch_fraction: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Fraction of each batch chosen among the hard negatives of the rest, anew each epoch.",
    )
    hard_negative_neighbours: int = Field(default=8, gt=0, description="Hardest rows remembered for each row.")
    color_jitter: float = Field(
        default=0.1, ge=0, le=1, description="Strength of brightness and contrast jitter, as a fraction."
    )

    @field_validator("domain")
    @classmethod
    def _domain_is_there(cls, domain: str) -> str:
        check_domain_name(domain)
        return domain

    @model_validator(mode="after")
    def _splits_make_a_whole(self) -> Self:
        total = self.train_split + self.val_split + self.test_split
        if abs(total - 1.0) > 1e-6:
            raise ValueError(f"train_split, val_split and test_split must sum to 1 (they sum to {total:g})")
        return self

    @model_validator(mode="after")
    def _one_way_to_a_resolution(self) -> Self:
        if self.wanted_throughput is not None and not self.auto_resolution:
            raise ValueError(
                f"wanted_throughput={self.wanted_throughput:g} is for auto_resolution to keep to: set "
                "auto_resolution=true as well, or leave wanted_throughput out"
            )
        if not self.auto_resolution:
            return self
        if "image_resolution" in self.model_fields_set:
            raise ValueError(
                f"auto_resolution chooses image_resolution, which is set to {self.image_resolution}: leave "
                "image_resolution out, or auto_resolution"
            )
        for key in ("resolution_schedule", "training_resolutions"):  # of another group, beside this one in a recipe
            if getattr(self, key, None) is not None:
                raise ValueError(
                    f"auto_resolution chooses one resolution, and {key} names several: leave {key} out, or "
                    f"auto_resolution"
                )
        return self


class AdapterSettings(Settings):
    lora_r: int | None = Field(
        default=None,
        gt=0,
        description="Rank of LoRA adapters, trained in place of the towers' weights (8 suits small data).",
    )
    lora_alpha: float = Field(
        default=16.0,
        gt=0,
        description="An adapter's update is scaled by this over lora_r: another rank needs no other rate.",
    )
    lora_dropout: float = Field(
        default=0.05, ge=0, lt=1, description="Fraction of an adapter's inputs dropped in training."
    )
    target_modules: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Names, or their endings, of adapted layers; null: all of both transformers.",
    )

    @model_validator(mode="after")
    def _targets_have_a_rank(self) -> Self:
        if self.target_modules and self.lora_r is None:
            raise ValueError("target_modules names what LoRA adapts: set lora_r too (8 suits small data)")
        return self


class OptimizerSettings(AdapterSettings):
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = Field(
        default="adamw",
        title="Optimizer",
        description="adafactor and adamw_8bit (CUDA only) keep a fraction of AdamW's memory.",
    )
    learning_rate: float = Field(default=5e-5, gt=0, description="Peak rate of a transformer tower (AdamW).")
    image_learning_rate: float | None = Field(
        default=None, gt=0, description="Peak rate of the image tower (of its adapters, where it has any)."
    )
    text_learning_rate: float | None = Field(
        default=None, gt=0, description="Peak rate of the text tower (of its adapters, where it has any)."
    )
    small_data: bool | None = Field(
        default=None,
        description="Hold the towers' lower layers back, decay more, stop early; null: with under 1,000 pairs.",
    )
    num_epochs: int = Field(default=10, gt=0, title="Number of epochs", description="Passes over the training rows.")
    max_steps: int | None = Field(
        default=None, gt=0, description="Stop after this many optimizer steps, if that comes first."
    )
    warmup_steps: int = Field(default=500, ge=0, description="Steps over which the rate rises linearly from zero.")
    min_learning_rate_ratio: float = Field(
        default=0.0, ge=0, le=1, description="Where the cosine ends, as a fraction of the peak."
    )
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decay of weight matrices (never of norms, biases, the scale)."
    )
    adam_beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the gradient's mean.")
    adam_beta2: float = Field(default=0.98, ge=0, lt=1, description="AdamW's decay of the gradient's square.")
    adam_epsilon: float = Field(default=1e-6, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global norm.")
    ema_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Validated and saved are weights averaged over so much of all steps; 0: the latest.",
    )
    layer_decay: float = Field(
        default=1.0, gt=0, le=1, description="Each layer nearer the input learns this much slower."
    )
    lock_image: bool = Field(default=False, description="Do not train the image tower.")
    lock_text: bool = Field(default=False, description="Do not train the text tower.")

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.lock_image and self.lock_text:
            raise ValueError("lock_image and lock_text together leave nothing to train: unlock one tower")
        return self


class MemorySettings(Settings):
    batch_size: int | None = Field(
        default=None, gt=0, description="Pairs a device step; null: from the rows, at most 256."
    )
    gradient_accumulation_steps: int = Field(
        default=1,
        gt=0,
        description="The contrastive batch is batch_size times this (GradCache: one loss over all of it).",
    )
    mini_batch_size: int | None = Field(
        default=None, gt=0, description="Pairs of a micro-batch (GradCache); null: as many as memory holds."
    )
    memory_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Fraction of the memory available at the start that training may fill; null: 0.8.",
    )
    mixed_precision: bool = Field(default=True, description="Let the device's policy choose; false means float32.")
    precision: Literal["fp32", "bf16", "fp16"] | None = Field(default=None, description="Precision of the towers.")
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="Compute each block again backward instead of keeping its activations; null: only where one pair "
        "would not fit otherwise.",
    )
    attention: Literal["auto", "sdpa", "sliced", "eager"] = Field(
        default="auto",
        title="Attention",
        description="sliced never keeps the attention matrix; auto takes it where the device's own kernel would.",
    )
    attention_slice_size: int | None = Field(
        default=None, gt=0, description="Queries in a block of sliced attention; null: chosen from lengths and memory."
    )
    use_mps: bool = Field(default=True, description="Use Apple's GPU where there is one.")
    device: Literal["mps", "cuda", "cpu"] | None = Field(default=None, description="Insist on a device.")

    @model_validator(mode="after")
    def _slices_are_used(self) -> Self:
        if self.attention_slice_size is not None and self.attention in ("sdpa", "eager"):
            raise ValueError(
                f"attention_slice_size={self.attention_slice_size} needs attention=sliced or auto "
                f"(it is {self.attention!r})"
            )
        return self


class EvaluationSettings(DomainMetricSettings, SemanticSettings):
    eval_steps: int = Field(default=500, gt=0, description="Steps between validations.")
    early_stopping_patience: int | None = Field(
        default=None,
        ge=0,
        description="Stop after this many validations without a better primary metric; 0: never; null: with few rows.",
    )
    prompt_templates: list[str] = Field(
        default=list(DEFAULT_TEMPLATES), min_length=1, description="Sentences for zero-shot classes; {} is the label."
    )
    eval_batch_size: int = Field(default=64, gt=0, description="Images embedded at once in evaluation.")
    retrieval_top_k: int = Field(default=5, gt=0, description="Results shown per query.")
    calibrate_temperature: bool = Field(
        default=False,
        description="Save the model with the temperature that makes its probabilities true on validation.",
    )
    alignment_visualization: bool = Field(default=False, description="Draw the alignment plots after training.")
    visualization_output_dir: str = Field(
        default="outputs/visualizations", description="Where they go; left as it is: <output_dir>/alignment."
    )

    @field_validator("prompt_templates")
    @classmethod
    def _templates_take_a_label(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"Prompt template {template!r} must contain {{}} exactly once, for the label")
        return templates


class RunSettings(SeedSettings):
    output_dir: str = Field(
        default="outputs", min_length=1, description="Folder of the run: recipe, metrics, checkpoints, report."
    )
    save_steps: int = Field(default=1000, gt=0, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(default=2, gt=0, description="Checkpoints kept besides the best one.")
    logging_steps: int = Field(default=100, gt=0, description="Steps between lines of metrics.jsonl.")


class TrainingSettings(
    OptimizerSettings,
    MemorySettings,
    BatchScheduleSettings,
    ResolutionSettings,
    EvaluationSettings,
    ReferenceSettings,
    ProbeSettings,
    RunSettings,
    TemperatureSettings,
):
    """What the loop reads."""
