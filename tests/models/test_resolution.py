"""Images of any size: position embeddings, resolutions, saving, and the choice of a resolution."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
)

from domainclip.config.settings import AdapterSettings
from domainclip.models import make_tiny_clip
from domainclip.models import position_embeddings as positions_module
from domainclip.models.io import save_encoder
from domainclip.models.lora import attach_lora
from domainclip.models.position_embeddings import (
    CACHED_MATRICES,
    PositionEmbeddings,
    position_embeddings,
)
from resolution_cases import SIZES, tower


def theirs(positions: PositionEmbeddings, height: int, width: int) -> torch.Tensor:
    """What the class of transformers itself makes of the same parameter."""
    rows, columns = height // positions.patch[0], width // positions.patch[1]
    patches = torch.zeros(1, positions.prefix + rows * columns, positions.table().shape[1])
    return type(positions.module).interpolate_pos_encoding(positions.module, patches, height, width)  # type: ignore


# --- position embeddings ---


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["clip", "siglip", "vit", "deit", "dinov2", "dinov2_with_registers"])
def test_a_tower_sees_what_transformers_own_interpolation_shows_it(name: str, size: tuple[int, int]) -> None:
    plain = tower(name)
    ours = copy.deepcopy(plain)
    positions = position_embeddings(ours)
    assert positions is not None
    assert positions.prefix == {"siglip": 0, "deit": 2}.get(name, 1)
    torch.testing.assert_close(
        positions.at_grid(size[0] // 8, size[1] // 8)[None], theirs(positions, *size), rtol=0, atol=1e-6
    )
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    options = {"interpolate_pos_encoding": True} if positions.asks else {}
    calls = 0
    resized = positions.at_grid

    def counted(rows: int, columns: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return resized(rows, columns)

    positions.at_grid = counted  # type: ignore[method-assign]
    with torch.no_grad():
        torch.testing.assert_close(
            ours(images, **options).last_hidden_state,
            plain(images, **options).last_hidden_state,
            rtol=0,
            atol=2e-6,
        )
    assert calls == 1  # the tower did ask here


@pytest.mark.parametrize(
    ("native", "patch", "size"),
    [(224, 32, (288, 288)), (224, 16, (160, 96)), (384, 14, (224, 518)), (336, 14, (672, 672))],
)
@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_real_grids(name: str, native: int, patch: int, size: tuple[int, int]) -> None:
    positions = position_embeddings(tower(name, native, patch))
    assert positions is not None
    rows, columns = size[0] // patch, size[1] // patch
    torch.testing.assert_close(positions.at_grid(rows, columns)[None], theirs(positions, *size), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit"])
@pytest.mark.parametrize("size", SIZES)
def test_gradient_is_that_of_interpolate(name: str, size: tuple[int, int]) -> None:
    positions = position_embeddings(tower(name).double())
    assert positions is not None
    rows, columns = size[0] // 8, size[1] // 8
    weight = torch.randn(positions.prefix + rows * columns, 24, dtype=torch.float64)
    (positions.at_grid(rows, columns) * weight).sum().backward()
    gradient = positions.parameter.grad
    assert gradient is not None

    table = positions.parameter.detach().view(-1, 24).clone().requires_grad_()
    grid = table[positions.prefix :].T.reshape(1, 24, 4, 4)
    resized = F.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False).flatten(2)[0].T
    (torch.cat([table[: positions.prefix], resized]) * weight).sum().backward()
    torch.testing.assert_close(gradient.view(-1, 24), table.grad, rtol=0, atol=1e-12)


def test_the_native_size_is_untouched_bit_for_bit_whatever_came_between() -> None:
    encoder = make_tiny_clip()
    assert encoder.positions is not None
    plain = copy.deepcopy(encoder.model)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    buffers = [name for name, _ in encoder.named_buffers()]
    with torch.no_grad():
        assert torch.equal(encoder.positions.at_grid(4, 4), encoder.positions.parameter)
        native = encoder.encode_image(images)
        assert torch.equal(native, plain.get_image_features(pixel_values=images).pooler_output)
        for step in range(60):
            encoder.encode_image(torch.zeros(1, 3, 8 * (1 + step % 7), 8 * (1 + step % 5)))
        assert torch.equal(encoder.encode_image(images), native)
        asked = encoder.model.get_image_features(pixel_values=images, interpolate_pos_encoding=True)
        assert torch.equal(asked.pooler_output, native)
    after = encoder.state_dict()
    assert after.keys() == before.keys() == plain_names(plain)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert [name for name, _ in encoder.named_buffers()] == buffers


def plain_names(model: torch.nn.Module) -> set[str]:
    return {f"model.{name}" for name in model.state_dict()}


def test_a_size_seen_before_costs_no_new_matrix_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = position_embeddings(tower("clip"))
    assert positions is not None
    made: list[tuple[int, int]] = []
    original = positions_module.resize_matrix

    def counting(length: int, new_length: int, *rest: Any) -> torch.Tensor:
        made.append((length, new_length))
        return original(length, new_length, *rest)

    monkeypatch.setattr(positions_module, "resize_matrix", counting)
    for _ in range(5):
        positions.at_grid(6, 3)
        positions.at_grid(3, 6)
        positions.at_grid(4, 6)
    assert sorted(made) == [(4, 3), (4, 6)]  # an axis, not a pair of axes: both ways round they are the same
    for resolution in range(5, 5 + 3 * CACHED_MATRICES):
        positions.at_grid(resolution, 4)
    assert len(positions._matrices) == CACHED_MATRICES
    made.clear()
    positions.at_grid(4 + 3 * CACHED_MATRICES, 4)  # the last ones are those that are kept
    assert not made


def test_neither_autocast_nor_half_weights_coarsen_the_resize() -> None:
    positions = position_embeddings(tower("clip"))
    assert positions is not None
    exact = positions.at_grid(6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(positions.at_grid(6, 6), exact)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(positions.at_grid(6, 6), exact)
    finally:
        torch.set_float32_matmul_precision(before)
    positions.module.to(torch.bfloat16)
    half = positions.at_grid(6, 6)
    assert half.dtype == torch.bfloat16
    table = positions.parameter.detach().double()
    grid = table[1:].T.reshape(1, 24, 4, 4)
    wanted = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten(2)[0].T
    assert torch.equal(half[1:], wanted.to(torch.bfloat16))


def test_matrices_made_in_inference_serve_training_after_it() -> None:
    encoder = make_tiny_clip()
    images = torch.randn(2, 3, 48, 48)
    with torch.inference_mode():
        encoder.encode_image(images)
    encoder.encode_image(images).sum().backward()
    gradient = encoder.model.vision_model.embeddings.position_embedding.weight.grad
    assert gradient is not None and float(gradient.abs().sum()) > 0


def test_a_copied_encoder_resizes_its_own_table() -> None:
    encoder = make_tiny_clip()
    twin = copy.deepcopy(encoder)
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        before = encoder.encode_image(images)
        twin.model.vision_model.embeddings.position_embedding.weight.normal_()
        assert not torch.allclose(twin.encode_image(images), before)
        assert torch.equal(encoder.encode_image(images), before)


def test_checkpointed_blocks_give_the_same_gradients_at_another_size() -> None:
    images = torch.randn(2, 3, 48, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        encoder = make_tiny_clip().double().train()
        if checkpointing:
            encoder.model.vision_model.activation_checkpointing_enable({"use_reentrant": False})
        encoder.encode_image(images).square().sum().backward()
        return {name: p.grad for name, p in encoder.model.vision_model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert "embeddings.position_embedding.weight" in plain
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-12)


def test_adapters_are_trained_and_merged_at_another_size(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    encoder = make_tiny_clip().eval()
    attach_lora(encoder, AdapterSettings(lora_r=2, lora_dropout=0.0), seed=0)
    with torch.no_grad():  # adapters begin as nothing
        for name, parameter in encoder.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.5)
    images = torch.randn(2, 3, 48, 48)
    encoder.processor.set_resolution(48)
    with torch.no_grad():
        adapted = encoder.encode_image(images)
    save_encoder(encoder, tmp_path / "merged")
    plain = AutoModel.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        saved = plain.get_image_features(pixel_values=images).pooler_output
        assert not torch.allclose(make_tiny_clip().encode_image(images), adapted, atol=1e-3)
    torch.testing.assert_close(saved, adapted, rtol=0, atol=1e-5)
