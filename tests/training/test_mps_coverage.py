"""No operation of a training step, of inference or of mining lacks a kernel on Apple's GPU (see ``mps_ops``)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.devices.precision import AUTOCAST_DTYPES, PrecisionDecision
from domainclip.domains.files import load_domain
from domainclip.inference import EmbeddingEngine
from domainclip.losses import LOSSES, build_loss
from domainclip.models import DualEncoder, load_encoder
from domainclip.models.checkpoint_blocks import checkpoint_blocks
from domainclip.models.lora import attach_lora
from domainclip.models.sliced_attention import register_sliced
from domainclip.resolve import ResolvedRun
from domainclip.retrieval.mining import hard_negatives
from domainclip.training import TrainContext, Trainer, build_trainer
from domainclip.training.optim.choice import OPTIMIZERS
from domainclip.training.step.views import ImageViews
from model_zoo import save_siglip, save_vision_text
from mps_ops import assert_runs_on_mps, kernels, missing_on_mps
from tiny_data import TinyData
from training_setup import DEFAULTS

pytestmark = pytest.mark.slow

RECIPES: dict[str, dict[str, Any]] = {
    "contrastive": {"label_smoothing": 0.1},
    "multi_positive": {},
    "chunked": {"loss_type": "multi_positive", "loss_chunk_size": 4},
    "sigmoid": {},
    "sigmoid chunked": {"loss_type": "sigmoid", "loss_chunk_size": 4},
    "hard_negative": {"hard_negative_mining_strategy": "semi-hard"},
    "hard_negative weighted": {"loss_type": "hard_negative", "hard_negative_mining_strategy": "weighted"},
    "domain_specific": {"domain": "medical"},
    "domain_specific industrial": {"loss_type": "domain_specific", "domain": "industrial"},
    "domain_specific scientific": {"loss_type": "domain_specific", "domain": "scientific"},
    "multi_scale": {},
    "multi_resolution": {"resolution_scales": [1.0, 2.0]},
    "combined": {"objectives": {"contrastive": 1.0, "sigmoid": 0.1}, "loss_balancing": "gradient_norm"},
    "combined uncertainty": {
        "loss_type": "combined",
        "objectives": {"contrastive": 1.0, "hard_negative": 0.5},
        "loss_balancing": "uncertainty",
    },
    "bilinear": {"loss_type": "multi_positive", "similarity_metric": "bilinear"},
    "euclidean": {"loss_type": "multi_positive", "similarity_metric": "euclidean"},
    "learned temperature": {"temperature": 0.07, "learnable_temp": True},
    "scheduled temperature": {"temperature_scheduling": True, "temperature_schedule_type": "cosine"},
}
ENCODERS = ("clip", "siglip", "vit and bert", "mobilenet and bert")


@pytest.fixture(scope="session")
def encoder_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    base = tmp_path_factory.mktemp("mps_encoders")
    return {
        "clip": "tiny",
        "siglip": str(save_siglip(base / "siglip")),
        "vit and bert": str(save_vision_text(base / "vit_bert", base / "a")),
        "mobilenet and bert": str(save_vision_text(base / "mobilenet_bert", base / "b", vision="mobilenet")),
    }


@pytest.fixture
def encoder_of(encoder_folders: dict[str, str]) -> Callable[..., DualEncoder]:
    return lambda name, **values: load_encoder(ModelSettings(model_name=encoder_folders[name], **values))


@pytest.fixture(scope="session")
def encoders(encoder_folders: dict[str, str]) -> dict[str, DualEncoder]:
    """One of each kind, for tests that only train its weights."""
    return {kind: load_encoder(ModelSettings(model_name=folder)) for kind, folder in encoder_folders.items()}


def trainer_of(
    encoder: DualEncoder, data: TinyData, folder: Path, precision: str = "fp32", scaler: bool = False, **values: Any
) -> Trainer:
    """The trainer that a run builds, but that the precision is any, as on MPS."""
    config = CLIPFinetuningConfig(**{**DEFAULTS, **values})
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    dataset = CLIPDataset(data.pairs(), encoder.processor, config, ImageTransform(config, augment=True, spec=spec))
    size = (config.batch_size or 6) * config.gradient_accumulation_steps
    decision = PrecisionDecision(precision, "", AUTOCAST_DTYPES[precision], scaler)  # type: ignore[arg-type]
    folder.mkdir(exist_ok=True)
    return build_trainer(
        TrainContext(folder),
        encoder.train(),
        build_loss(config, encoder.embedding_dim),
        training_loader(dataset, config, size),
        ResolvedRun(config.frozen(), load_domain(config.domain)),
        torch.device("cpu"),
        decision,
    )


def whole_step(trainer: Trainer) -> Callable[[], object]:
    """Zeroing, forward, loss, backward, unscaling, clipping, the optimizer, the clamp: all that the loop does."""
    batch = next(iter(trainer.loader))
    return lambda: trainer.step.update(batch, 0)


def recipe(name: str) -> dict[str, Any]:
    return {"loss_type": name.split(" ")[0], **RECIPES[name]} if name.split(" ")[0] in LOSSES else RECIPES[name]


def test_every_registered_objective_is_traced_here() -> None:
    assert set(LOSSES) <= {recipe(name).get("loss_type") for name in RECIPES}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", ENCODERS)
def test_a_training_step_runs_on_mps(
    kind: str, name: str, encoders: dict[str, DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    encoder = encoders[kind]
    encoder.logit_scale.requires_grad_(True)  # a schedule takes it from the optimizer
    assert_runs_on_mps(whole_step(trainer_of(encoder, tiny_data, tmp_path, **recipe(name))))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("precision", "scaler"), [("bf16", False), ("fp16", True)])
def test_mixed_precision_with_gradcache_runs_on_mps(
    precision: str, scaler: bool, kind: str, encoders: dict[str, DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    trainer = trainer_of(
        encoders[kind], tiny_data, tmp_path, precision, scaler, mini_batch_size=2, gradient_accumulation_steps=2
    )
    called = assert_runs_on_mps(whole_step(trainer)).calls
    assert scaler == ("_amp_update_scale_" in called) == ("_amp_foreach_non_finite_check_and_unscale_" in called)


def test_gradcache_with_dropout_and_trained_batch_norm_runs_on_mps(
    encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    encoder = encoder_of("mobilenet and bert", freeze_batch_norm=False)
    for module in encoder.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    called = assert_runs_on_mps(whole_step(trainer_of(encoder, tiny_data, tmp_path, mini_batch_size=4))).calls
    assert {"native_batch_norm_backward", "bernoulli_.float"} <= set(called)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw_8bit"])  # that one is for CUDA alone
def test_every_optimizer_runs_on_mps(
    name: str, encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    assert_runs_on_mps(whole_step(trainer_of(encoder_of("clip"), tiny_data, tmp_path, optimizer=name)))


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
def test_every_form_of_adamw_runs_on_mps(
    options: dict[str, bool], encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    trainer = trainer_of(encoder_of("clip"), tiny_data, tmp_path)
    groups = [{key: group[key] for key in ("params", "lr", "peak_lr")} for group in trainer.step.optimizer.param_groups]
    trainer.step.optimizer = torch.optim.AdamW(groups, **options)
    called = assert_runs_on_mps(whole_step(trainer)).calls
    assert ("_fused_adamw_" in called) == options.get("fused", False)


def test_a_locked_tower_runs_on_mps(
    encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    encoder = encoder_of("clip")
    encoder.lock("image")
    assert_runs_on_mps(whole_step(trainer_of(encoder, tiny_data, tmp_path, mini_batch_size=3)))


@pytest.mark.parametrize("kind", ["clip", "vit and bert"])
@pytest.mark.parametrize("attention", ["eager", "sdpa", "sliced_4"])
def test_every_attention_runs_on_mps(
    attention: str, kind: str, encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    register_sliced(4)
    encoder = encoder_of(kind)
    encoder.model.set_attn_implementation(attention)
    assert_runs_on_mps(whole_step(trainer_of(encoder, tiny_data, tmp_path)))


@pytest.mark.parametrize("kind", ENCODERS)
def test_adapters_and_checkpointed_blocks_run_on_mps(
    kind: str, encoder_of: Callable[..., DualEncoder], tiny_data: TinyData, tmp_path: Path
) -> None:
    recipe = {"lora_r": 2, "lora_dropout": 0.1}
    encoder = encoder_of(kind)
    attach_lora(encoder, CLIPFinetuningConfig(**recipe), seed=0)
    checkpoint_blocks(encoder.model, enabled=True)
    assert_runs_on_mps(whole_step(trainer_of(encoder, tiny_data, tmp_path, **recipe)))


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("scale", [0.5, 1.5])
def test_images_of_other_sizes_run_on_mps(scale: float, kind: str, encoder_of: Callable[..., DualEncoder]) -> None:
    """Resized on the device, and position embeddings resized with a gradient."""
    encoder = encoder_of(kind).train()
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    views = ImageViews(encoder, spec, [1.0, scale])
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert_runs_on_mps(lambda: views(pixels).square().sum().backward())


@pytest.mark.parametrize("kind", ENCODERS)
def test_inference_runs_on_mps(kind: str, encoder_of: Callable[..., DualEncoder], tiny_data: TinyData) -> None:
    """Files and images are decoded and resized by threads on the CPU, which a recorder of this thread leaves out."""
    engine = EmbeddingEngine(encoder_of(kind), batch_size=4)
    paths = [pair.image_path for pair in tiny_data.pairs("val")]
    assert_runs_on_mps(lambda: engine.encode_images(paths))
    assert_runs_on_mps(lambda: engine.encode_images([Image.fromarray(np.zeros((40, 50, 3), np.uint8))]))
    assert_runs_on_mps(lambda: engine.encode_texts(["a photo of brick", "grass", "the moon seen from far above"]))


def test_mining_hard_negatives_runs_on_mps() -> None:
    images, texts = F.normalize(torch.randn(2, 40, 8), dim=-1)
    texts[20:] = texts[:20]
    groups = torch.arange(40) % 7
    assert_runs_on_mps(lambda: hard_negatives(images, texts, groups, k=3, false_negative_margin=0.1, chunk=16))


# --- the checker itself ---


def test_a_missing_operation_is_found_and_its_place_told() -> None:
    """The backward pass of antialiased bicubic interpolation has no MPS kernel, its forward pass has one."""
    image = torch.rand(1, 3, 16, 16, requires_grad=True)

    def shrink_and_learn() -> None:
        small = F.interpolate(image, size=(8, 8), mode="bicubic", antialias=True)
        small.sum().backward()

    (missing,) = missing_on_mps(shrink_and_learn)
    assert missing.op == "_upsample_bicubic2d_aa_backward"
    assert missing.node is not None and "Bicubic2D" in missing.node
    line = shrink_and_learn.__code__.co_firstlineno + 1  # the forward call, not that of backward()
    assert f'{Path(__file__).name}", line {line}, in shrink_and_learn' in missing.stack[-1]
    with pytest.raises(AssertionError, match=r"aten::_upsample_bicubic2d_aa_backward has no MPS kernel"):
        assert_runs_on_mps(shrink_and_learn)


def test_a_missing_operation_inside_a_shared_kernel_is_found() -> None:
    """``lstsq`` is one kernel for all devices, which hands the work to a variant that MPS has not."""
    (missing,) = missing_on_mps(lambda: torch.linalg.lstsq(torch.eye(3), torch.eye(3)))
    assert (missing.op, missing.inside) == ("linalg_lstsq.out", "linalg_lstsq")
    assert Path(__file__).name in missing.stack[-1]


def test_a_custom_operator_is_not_taken_for_one_of_mps() -> None:
    @torch.library.custom_op("domainclip_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    (missing,) = missing_on_mps(lambda: double(torch.ones(2)))
    assert missing.op == "domainclip_test::double"


def test_the_table_agrees_with_what_is_known_of_single_operations() -> None:
    known = {
        "mm": "mps",  # structured: its out variant lists MPS
        "add.Tensor": "mps",
        "_fused_adamw_": "mps",
        "upsample_bicubic2d_backward": "mps",
        "matmul": "implicit",
        "masked_fill.Scalar": "explicit",
        "linalg_vector_norm": "mps",
        "_foreach_norm.Scalar": "explicit",
        "_upsample_bicubic2d_aa_backward": None,
        "_scaled_dot_product_efficient_attention": None,
        "_scaled_dot_product_flash_attention_for_cpu": None,  # what the CPU takes without sdpa_kernel(MATH)
    }
    assert {name: kernels()[name] for name in known} == known
