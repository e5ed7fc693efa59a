"""The groups of settings a recipe is composed of. Each function of the package asks for the group it reads, never for
the whole.

A default stated here is what holds when nothing better is known; ``resolve`` replaces the defaults of keys
the user left unset by what the model, the data and the device say, and gives the reason.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from domainclip.config.base import Settings
from domainclip.config.domain_metric_settings import DomainMetricSettings
from domainclip.config.domain_name import check_domain_name
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.key_facts import BUDGET, SAME_FOR_ALL, Search, key
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


def _of_the_rows(default: Any, description: str, **limits: Any) -> Any:
    """A key that says which rows there are and what is in them."""
    return key(default, "data", description, one_run=True, search=SAME_FOR_ALL, **limits)


class SeedSettings(Settings):
    seed: int = _of_the_rows(
        42, "Seed of every random choice: splits, order, augmentation, dropout.", ge=0, lt=2**32, also=("random_seed",)
    )


class ModelSettings(SeedSettings):
    model_name: str = key(
        "openai/clip-vit-base-patch32",
        "model",
        "Hub name, short name (vit-b-32) or local directory of the model to start from (an OpenCLIP checkpoint: "
        "hf-hub:NAME, or a directory); 'tiny' makes a random one.",
        min_length=1,
        one_run=True,
        path="read",
        also=("model", "pretrained", "model_name_or_path", "model_path"),
    )
    vision_model_name: str | None = key(
        None, "model", "Image backbone to join with text_model_name.", one_run=True, path="read"
    )
    text_model_name: str | None = key(
        None, "model", "Text backbone to join with vision_model_name.", one_run=True, path="read"
    )
    save_open_clip: bool | None = key(
        None,
        "training",
        "Write the model as an OpenCLIP checkpoint, too; null: where it was loaded from one.",
        changes_weights=False,
    )
    freeze_batch_norm: bool | None = key(
        None, "training", "Keep the stored batch-norm statistics in training; null: only where micro-batches need it."
    )


class DataSettings(SeedSettings):
    domain: str = key(
        "general",
        "data",
        "A shipped domain (`domainclip domain list`) or the path of a YAML file: what images, captions, "
        "training and evaluation of a domain want.",
        one_run=True,
        search=Search(steers=True),
        path="read",
    )
    data_path: str = key(
        "data",
        "data",
        "A table, a directory, or a Hugging Face data set.",
        min_length=1,
        changes_weights=False,
        one_run=True,
        path="read",
        also=("data", "dataset", "data_dir", "train_data"),
    )
    image_col: str = _of_the_rows(
        "image_path", "Column (key) with the image's path.", min_length=1, also=("image_column", "img_col")
    )
    caption_col: str = _of_the_rows(
        "caption",
        "Column (key) with the caption.",
        min_length=1,
        also=("caption_column", "text_col", "text_column", "csv_caption_key"),
    )
    label_col: str = _of_the_rows(
        "label", "Column (key) with the class, if there is one.", min_length=1, also=("label_column",)
    )
    group_col: str = _of_the_rows("group", "Column whose values never straddle splits (patient…).", min_length=1)
    split_col: str | None = _of_the_rows(
        "split", "Column that says the split of each row; null: none is looked for.", min_length=1
    )
    image_root: str | None = _of_the_rows(
        None, "Folder that relative image paths start from; null: the table's own.", min_length=1, path="read"
    )
    caption_template: str | None = _of_the_rows(
        None, "How captions are written from labels where there are none ('a photo of a {label}'); null: the domain's."
    )
    train_split: float = _of_the_rows(
        0.8, "Fraction of rows for training where no split is given; left out: what the two others leave.", gt=0, le=1
    )
    val_split: float = _of_the_rows(0.1, "Fraction for validation (chooses the checkpoint).", ge=0, lt=1)
    test_split: float = _of_the_rows(0.1, "Fraction for the test (only reported).", ge=0, lt=1)
    strict: bool = key(
        False, "data", "Stop at the first bad image or row instead of skipping it.", changes_weights=False, one_run=True
    )
    max_image_pixels: int = key(
        178_956_970,
        "training",
        "Larger images are refused before decoding, in pixels.",
        gt=0,
        le=178_956_970,
        search=SAME_FOR_ALL,
    )
    num_workers: int = key(
        4,
        "machine",
        "Processes that read images; 0 reads beside the training.",
        ge=0,
        le=128,
        changes_weights=False,
        one_run=True,
        also=("workers", "dataloader_num_workers"),
    )
    image_cache_mb: int = key(
        2048,
        "machine",
        "Memory for decoded images kept across epochs, in MiB.",
        ge=0,
        changes_weights=False,
        one_run=True,
    )
    shuffle: bool = key(True, "training", "Draw the training rows in a new order each epoch.")
    image_resolution: int = key(
        224,
        "training",
        "Resolution of the image given to the model, in pixels.",
        ge=16,
        le=4096,
        also=("resolution", "image_size", "img_size"),
    )
    auto_resolution: bool = key(
        False, "training", "Choose image_resolution from the images' sizes, the memory and wanted_throughput."
    )
    wanted_throughput: float | None = key(
        None, "training", "Images a second in training that auto_resolution keeps to; null: as many as it gets.", gt=0
    )
    max_sequence_length: int = key(
        77,
        "training",
        "Longest caption in tokens; longer ones are cut.",
        ge=4,
        le=8192,
        also=("max_length", "context_length", "max_seq_length"),
    )
    positives: Literal["auto", "caption", "statement", "label"] = key(
        "auto",
        "training",
        "Rows that are each other's positives: equal caption, equal statement (case, punctuation, "
        "filler words and the order of phrases aside), or equal label.",
    )
    image_preprocessing: ImagePreprocessing | None = key(
        None, "images", "Steps before the resize (window, border, light, contrast, tiles); null: the domain's."
    )
    text_preprocessing: TextPreprocessing | None = key(
        None, "texts", "Steps before the tokenizer (spelling, abbreviations, length); null: the domain's."
    )
    augment_images: bool = key(
        True,
        "augmentation",
        "Random crops, flips where harmless, and light jitter in training.",
        also=("augment", "augmentation"),
    )
    augment_text: bool = key(False, "augmentation", "Also show the label as a prompt in place of some captions.")
    crop_scale: float = key(
        0.7, "augmentation", "Smallest fraction of the image's area a random crop keeps.", gt=0, le=1
    )
    horizontal_flip: bool = key(False, "augmentation", "Mirror left and right in augmentation.")
    vertical_flip: bool = key(False, "augmentation", "Mirror top and bottom in augmentation.")
    rotate90: bool = key(False, "augmentation", "Turn by multiples of 90 degrees in augmentation.")
    hard_negative_batch_fraction: float = key(
        0.0,
        "training",
        "Fraction of each batch chosen among the hard negatives of the rest, anew each epoch.",
        ge=0,
        le=1,
    )
    hard_negative_neighbours: int = key(8, "training", "Hardest rows remembered for each row.", gt=0)
    color_jitter: float = key(
        0.1, "augmentation", "Strength of brightness and contrast jitter, as a fraction.", ge=0, le=1
    )

    @field_validator("domain")
    @classmethod
    def _domain_is_there(cls, domain: str) -> str:
        check_domain_name(domain)
        return domain

    @model_validator(mode="after")
    def _splits_make_a_whole(self) -> Self:
        if "train_split" not in self.model_fields_set and self.val_split + self.test_split < 1:
            # What is left of the others: val_split=0 alone means that its rows are trained on.
            self.__dict__["train_split"] = round(1 - self.val_split - self.test_split, 9)
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
        for name in ("resolution_schedule", "training_resolutions"):  # of another group, beside this one in a recipe
            if getattr(self, name, None) is not None:
                raise ValueError(
                    f"auto_resolution chooses one resolution, and {name} names several: leave {name} out, or "
                    f"auto_resolution"
                )
        return self


class AdapterSettings(Settings):
    lora_r: int | None = key(
        None,
        "training",
        "Rank of LoRA adapters, trained in place of the towers' weights (8 suits small data).",
        gt=0,
        common=True,
        also=("lora_rank", "rank"),
    )
    lora_alpha: float = key(
        16.0, "training", "An adapter's update is scaled by this over lora_r: another rank needs no other rate.", gt=0
    )
    lora_dropout: float = key(0.05, "training", "Fraction of an adapter's inputs dropped in training.", ge=0, lt=1)
    target_modules: list[str] | None = key(
        None, "training", "Names, or their endings, of adapted layers; null: all of both transformers.", min_length=1
    )

    @model_validator(mode="after")
    def _targets_have_a_rank(self) -> Self:
        if self.target_modules and self.lora_r is None:
            raise ValueError("target_modules names what LoRA adapts: set lora_r too (8 suits small data)")
        return self


class OptimizerSettings(AdapterSettings):
    optimizer: Literal["adamw", "adafactor", "adamw_8bit"] = key(
        "adamw",
        "training",
        "adafactor and adamw_8bit (CUDA only) keep a fraction of AdamW's memory.",
        title="Optimizer",
    )
    learning_rate: float = key(
        5e-5,
        "training",
        "Peak rate of a transformer tower (AdamW).",
        gt=0,
        search=Search(0.1, 10, log=True, relative=True),
        common=True,
        also=("lr",),
    )
    image_learning_rate: float | None = key(
        None, "training", "Peak rate of the image tower (of its adapters, where it has any).", gt=0
    )
    text_learning_rate: float | None = key(
        None, "training", "Peak rate of the text tower (of its adapters, where it has any).", gt=0
    )
    small_data: bool | None = key(
        None, "training", "Hold the towers' lower layers back, decay more, stop early; null: with under 1,000 pairs."
    )
    num_epochs: int = key(
        10,
        "training",
        "Passes over the training rows.",
        gt=0,
        title="Number of epochs",
        search=BUDGET,
        common=True,
        also=("epochs", "epoch", "n_epochs", "max_epochs", "num_train_epochs"),
    )
    max_steps: int | None = key(
        None,
        "training",
        "Stop after this many optimizer steps, if that comes first.",
        gt=0,
        search=BUDGET,
        also=("steps", "num_steps"),
    )
    warmup_steps: int = key(
        500,
        "training",
        "Steps over which the rate rises linearly from zero.",
        ge=0,
        also=("warmup", "num_warmup_steps"),
    )
    min_learning_rate_ratio: float = key(
        0.0, "training", "Where the cosine ends, as a fraction of the peak.", ge=0, le=1
    )
    weight_decay: float = key(
        0.01,
        "training",
        "Decay of weight matrices (never of norms, biases, the scale).",
        ge=0,
        search=Search(1e-3, 0.3, log=True),
        common=True,
        also=("wd", "decay"),
    )
    adam_beta1: float = key(0.9, "training", "AdamW's decay of the gradient's mean.", ge=0, lt=1)
    adam_beta2: float = key(0.98, "training", "AdamW's decay of the gradient's square.", ge=0, lt=1)
    adam_epsilon: float = key(1e-6, "training", "AdamW's epsilon.", gt=0)
    max_grad_norm: float = key(
        1.0,
        "training",
        "Gradients are scaled down to this global norm.",
        gt=0,
        also=("grad_clip", "grad_clip_norm", "clip_grad_norm", "gradient_clip_val"),
    )
    ema_fraction: float = key(
        0.1,
        "training",
        "Validated and saved are weights averaged over so much of all steps; 0: the latest.",
        ge=0,
        lt=1,
    )
    layer_decay: float = key(
        1.0, "training", "Each layer nearer the input learns this much slower.", gt=0, le=1, common=True
    )
    lock_image: bool = key(
        False, "training", "Do not train the image tower.", common=True, also=("freeze_image", "freeze_vision")
    )
    lock_text: bool = key(False, "training", "Do not train the text tower.", common=True, also=("freeze_text",))

    @model_validator(mode="after")
    def _something_learns(self) -> Self:
        if self.lock_image and self.lock_text:
            raise ValueError("lock_image and lock_text together leave nothing to train: unlock one tower")
        return self


class MemorySettings(Settings):
    batch_size: int | None = key(
        None,
        "training",
        "Pairs a device step; null: from the rows, at most 256.",
        gt=0,
        also=("bs", "batch", "train_batch_size", "per_device_train_batch_size"),
    )
    gradient_accumulation_steps: int = key(
        1,
        "training",
        "The contrastive batch is batch_size times this (GradCache: one loss over all of it).",
        gt=0,
        also=("accum_freq", "grad_accum", "accumulate_grad_batches"),
    )
    mini_batch_size: int | None = key(
        None, "training", "Pairs of a micro-batch (GradCache); null: as many as memory holds.", gt=0
    )
    memory_fraction: float | None = key(
        None,
        "machine",
        "Fraction of the memory available at the start that training may fill; null: 0.8.",
        gt=0,
        le=1,
        changes_weights=False,
        one_run=True,
    )
    mixed_precision: bool = key(True, "training", "Let the device's policy choose; false means float32.")
    precision: Literal["fp32", "bf16", "fp16"] | None = key(
        None, "training", "Precision of the towers.", also=("dtype", "amp", "fp16", "bf16")
    )
    gradient_checkpointing: bool | None = key(
        None,
        "training",
        "Compute each block again backward instead of keeping its activations; null: only where one pair "
        "would not fit otherwise.",
        also=("grad_checkpointing",),
    )
    attention: Literal["auto", "sdpa", "sliced", "eager"] = key(
        "auto",
        "training",
        "sliced never keeps the attention matrix; auto takes it where the device's own kernel would.",
        title="Attention",
    )
    attention_slice_size: int | None = key(
        None, "training", "Queries in a block of sliced attention; null: chosen from lengths and memory.", gt=0
    )
    use_mps: bool = key(True, "machine", "Use Apple's GPU where there is one.", one_run=True, search=SAME_FOR_ALL)
    device: Literal["mps", "cuda", "cpu"] | None = key(
        None, "machine", "Insist on a device.", one_run=True, search=SAME_FOR_ALL
    )
    backend: str = key(
        "torch",
        "machine",
        "What a model is used with once it is trained: torch, openvino or onnx, with a precision where one is wanted "
        "(openvino:int8); auto tries what is there and takes the fastest.",
        min_length=1,
        changes_weights=False,
        one_run=True,
    )

    @model_validator(mode="after")
    def _slices_are_used(self) -> Self:
        if self.attention_slice_size is not None and self.attention in ("sdpa", "eager"):
            raise ValueError(
                f"attention_slice_size={self.attention_slice_size} needs attention=sliced or auto "
                f"(it is {self.attention!r})"
            )
        return self


class EvaluationSettings(DomainMetricSettings, SemanticSettings):
    eval_steps: int = key(
        500, "training", "Steps between validations.", gt=0, search=SAME_FOR_ALL, also=("eval_every", "val_frequency")
    )
    early_stopping_patience: int | None = key(
        None,
        "training",
        "Stop after this many validations without a better primary metric; 0 or null: never.",
        ge=0,
        search=BUDGET,
        common=True,
        also=("patience",),
    )
    evaluators: list[str] = key(
        [],
        "evaluation",
        "Evaluators that every validation has too: those of plugins, or of the package where it has them.",
        changes_weights=False,
        names=("classification", "retrieval", "domain_metrics", "class_hierarchy", "documents", "terminology"),
    )
    primary_metric: str | None = key(
        None,
        "training",
        "Metric that chooses the best checkpoint and stops early; null: acc1, or mean_R@1 without classes.",
        min_length=1,
        search=SAME_FOR_ALL,
    )
    prompt_templates: list[str] = key(
        list(DEFAULT_TEMPLATES),
        "prompts",
        "Sentences that describe a class; {} is the label.",
        min_length=1,
        search=SAME_FOR_ALL,
    )
    # The probe reads features in such batches, too, and sums over another batch round otherwise.
    eval_batch_size: int = key(
        64,
        "evaluation",
        "Images embedded at once in evaluation; another number rounds the probe's sums otherwise, too.",
        gt=0,
        search=SAME_FOR_ALL,
    )
    retrieval_top_k: int = key(5, "evaluation", "Results shown per query.", gt=0, changes_weights=False)
    calibrate_temperature: bool = key(
        False,
        "evaluation",
        "Save the model with the temperature that makes its probabilities true on validation.",
        changes_weights=False,
    )
    alignment_visualization: bool = key(
        False, "evaluation", "Draw the alignment plots after training.", changes_weights=False
    )
    visualization_output_dir: str = key(
        "outputs/visualizations",
        "run",
        "Where they go; left as it is: <output_dir>/alignment.",
        changes_weights=False,
        one_run=True,
        path="written",
    )

    @field_validator("prompt_templates")
    @classmethod
    def _templates_take_a_label(cls, templates: list[str]) -> list[str]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"Prompt template {template!r} must contain {{}} exactly once, for the label")
        return templates


class RunSettings(SeedSettings):
    output_dir: str = key(
        "outputs",
        "run",
        "Folder of the run: recipe, metrics, checkpoints, report.",
        min_length=1,
        changes_weights=False,
        one_run=True,
        path="written",
        also=("output", "out", "out_dir", "save_dir", "run_dir"),
    )
    save_steps: int = key(
        1000,
        "training",
        "Steps between checkpoints.",
        gt=0,
        changes_weights=False,
        also=("save_every", "save_frequency"),
    )
    keep_checkpoints: int = key(
        2,
        "run",
        "Checkpoints kept while a run goes on, one at least; a finished run keeps the last, and none with 0.",
        ge=0,
        changes_weights=False,
        one_run=True,
    )
    logging_steps: int = key(
        100,
        "training",
        "Steps between lines of metrics.jsonl.",
        gt=0,
        changes_weights=False,
        also=("log_every", "log_every_n_steps"),
    )


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
