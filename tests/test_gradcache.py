"""Chunks equal the whole batch, and the lean path equals the plain one, in float64."""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import TinyData
from domainclip.config import CLIPFinetuningConfig, ModelSettings
from domainclip.data.batches import PairCollator, collate_fn
from domainclip.data.dataset import CLIPDataset
from domainclip.losses import LOSSES, CLIPContrastiveLoss, MultiPositiveContrastiveLoss, build_loss, call_objective
from domainclip.models import DualEncoder, load_encoder, make_tiny_clip
from domainclip.training import ContrastiveStep
from model_zoo import save_siglip, save_vision_text

ROWS = 8
Loss = CLIPContrastiveLoss | MultiPositiveContrastiveLoss


def batch_of(texts: int = 5, seed: int = 0) -> dict[str, Any]:
    """Eight pictures that share five texts."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.tensor([0, 1, 2, 3, 4, 0, 2, 0])
    length = 9
    ids = torch.randint(5, 300, (texts, length), generator=generator)
    end = make_tiny_clip().processor.tokenizer.eos_token_id
    ids[:, -1] = end
    return {
        "pixels": torch.randn(ROWS, 3, 32, 32, generator=generator, dtype=torch.float64),
        "input_ids": ids,
        "attention_mask": torch.ones(texts, length, dtype=torch.long),
        "caption_index": index,
        "group_ids": index.clone(),
    }


def step_of(encoder: DualEncoder, loss: Loss, chunk: int | None) -> ContrastiveStep:
    return ContrastiveStep(
        encoder.encode_image,
        encoder.encode_text,
        lambda x, y, g: loss(x, y, group_ids=g, logit_scale=encoder.logit_scale),
        contextlib.nullcontext,
        torch.device("cpu"),
        chunk,
    )


def gradients(encoder: DualEncoder) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in encoder.model.named_parameters() if p.grad is not None}
    encoder.zero_grad(set_to_none=True)
    return found


def assert_equal(mine: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert mine.keys() == reference.keys()
    for name, expected in reference.items():
        torch.testing.assert_close(
            mine[name], expected, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert any(float(value.abs().max()) > 1e-4 for value in reference.values())


@pytest.mark.parametrize("loss", [CLIPContrastiveLoss(), MultiPositiveContrastiveLoss()])
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_give_the_whole_batchs_gradient(loss: Loss, chunk: int) -> None:
    encoder = make_tiny_clip().double().train()
    batch = batch_of()
    # The reference knows nothing of ContrastiveStep: every row's own caption, one graph.
    images = encoder.encode_image(batch["pixels"])
    texts = encoder.encode_text(batch["input_ids"][batch["caption_index"]])
    whole = loss(images, texts, group_ids=batch["group_ids"], logit_scale=encoder.logit_scale)["loss"]
    whole.backward()
    reference = gradients(encoder)
    output = step_of(encoder, loss, chunk)(batch)
    assert float(output["loss"]) == pytest.approx(float(whole.detach()), rel=1e-12)
    mine = gradients(encoder)
    assert_equal(mine, reference)
    # Counted once, not once a chunk.
    assert float(mine["logit_scale"]) == pytest.approx(float(reference["logit_scale"]), rel=1e-9)
    assert abs(float(reference["logit_scale"])) > 1e-6


def _chunked_with_graph(encoder: DualEncoder, loss: Loss, batch: dict[str, Any], chunk: int) -> Tensor:
    images = torch.cat([encoder.encode_image(part) for part in batch["pixels"].split(chunk)])
    texts = torch.cat([encoder.encode_text(part) for part in batch["input_ids"].split(chunk)])
    return loss(images, texts[batch["caption_index"]], group_ids=batch["group_ids"], logit_scale=encoder.logit_scale)[
        "loss"
    ]


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_with_dropout_chunks_are_replayed_with_their_own_numbers(chunk: int) -> None:
    encoder = make_tiny_clip(attention_dropout=0.3).double().train()
    batch, loss = batch_of(), MultiPositiveContrastiveLoss()
    torch.manual_seed(11)
    whole = _chunked_with_graph(encoder, loss, batch, chunk)
    whole.backward()
    after = torch.get_rng_state()
    reference = gradients(encoder)
    torch.manual_seed(11)
    output = step_of(encoder, loss, chunk)(batch)
    assert float(output["loss"]) == pytest.approx(float(whole.detach()), rel=1e-12)
    assert_equal(gradients(encoder), reference)
    assert torch.equal(torch.get_rng_state(), after)  # a replay takes no numbers of its own
    torch.manual_seed(12)
    assert float(step_of(encoder, loss, chunk)(batch)["loss"]) != float(output["loss"])  # dropout was really on


def test_chunks_of_a_locked_tower() -> None:
    encoder = make_tiny_clip().double().train()
    encoder.lock("text")
    batch, loss = batch_of(), CLIPContrastiveLoss()
    step_of(encoder, loss, None)(batch)
    reference = gradients(encoder)
    step_of(encoder, loss, 3)(batch)
    mine = gradients(encoder)
    assert not any(name.startswith("text_") for name in mine)
    assert_equal(mine, reference)


def test_a_scaled_backward_scales_every_gradient_alike() -> None:
    """What a GradScaler does for float16."""
    encoder = make_tiny_clip().double().train()
    batch, loss = batch_of(), CLIPContrastiveLoss()
    step_of(encoder, loss, 3)(batch)
    reference = {name: value * 1024 for name, value in gradients(encoder).items()}
    scaled = step_of(encoder, loss, 3)
    scaled.backward_scale = lambda value: value * 1024
    output = scaled(batch)
    assert_equal(gradients(encoder), reference)
    assert float(output["loss"]) < 10  # the loss that is reported is not scaled


def test_chunks_hold_one_chunks_graph_at_a_time() -> None:
    """The point of it: how many pictures' activations are alive at once."""
    encoder = make_tiny_clip().double().train()
    batch = batch_of()
    seen: list[tuple[int, bool]] = []
    plain = encoder.encode_image

    def watched(pixels: Tensor) -> Tensor:
        seen.append((len(pixels), torch.is_grad_enabled()))
        return plain(pixels)

    step = step_of(encoder, CLIPContrastiveLoss(), 3)
    step.encode_image = watched
    step(batch)
    assert seen == [(3, False), (3, False), (2, False), (3, True), (3, True), (2, True)]


# --- every objective, and passes that keep their graph ---

SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in LOSSES},
    "combined": {"loss_type": "combined", "objectives": {"multi_positive": 1.0, "sigmoid": 0.1}},
}
SETTINGS |= {
    balancing: {**SETTINGS["combined"], "loss_balancing": balancing} for balancing in ("uncertainty", "gradient_norm")
}
SETTINGS |= {
    domain: {"loss_type": "domain_specific", "domain": domain} for domain in ("medical", "industrial", "scientific")
}
SETTINGS |= {
    strategy: {"loss_type": "hard_negative", "hard_negative_mining_strategy": strategy}
    for strategy in ("hard", "weighted")
}


def objective(name: str, metric: str = "cosine") -> nn.Module:
    config = CLIPFinetuningConfig(**SETTINGS[name], similarity_metric=metric)
    return build_loss(config, make_tiny_clip().embedding_dim).double().train()


def pictures_of(encoder: DualEncoder, loss: nn.Module) -> Callable[[Tensor], Tensor]:
    """One embedding for each picture, or one for each of its sizes where the objective asks for them."""
    if not hasattr(loss, "resolution_scales"):
        return encoder.encode_image
    assert len(loss.resolution_scales) == 2
    return lambda x: torch.stack([encoder.encode_image(x), encoder.encode_image(F.avg_pool2d(x, 2))], dim=1)


def outcome(
    encoder: DualEncoder, loss: nn.Module, step: Callable[[nn.Module], Tensor]
) -> tuple[dict[str, Tensor], float]:
    """Every gradient, the objective's own too, and the loss. ``loss`` itself stays as it was."""
    own = copy.deepcopy(loss)
    torch.manual_seed(11)
    value = float(step(own).detach())
    found = {f"loss.{name}": p.grad.clone() for name, p in own.named_parameters() if p.grad is not None}
    return gradients(encoder) | found, value


def through_step(encoder: DualEncoder, loss: nn.Module, batch: dict[str, Any], **options: Any) -> Tensor:
    def contrast(x: Tensor, y: Tensor, groups: Tensor) -> dict[str, Any]:
        return call_objective(loss, x, y, group_ids=groups, logit_scale=encoder.logit_scale, progress=0.3)

    step = ContrastiveStep(
        pictures_of(encoder, loss),
        encoder.encode_text,
        contrast,
        contextlib.nullcontext,
        torch.device("cpu"),
        **options,
    )
    value: Tensor = step(batch)["loss"]
    return value


def with_graph(encoder: DualEncoder, loss: nn.Module, batch: dict[str, Any], chunk: int) -> Tensor:
    """The reference: the chunks one after another, in one graph, by autograd alone."""
    encode = pictures_of(encoder, loss)
    images = torch.cat([encode(part) for part in batch["pixels"].split(chunk)])
    texts = torch.cat([encoder.encode_text(part) for part in batch["input_ids"].split(chunk)])
    output = call_objective(
        loss, images, texts[batch["caption_index"]], group_ids=batch["group_ids"], logit_scale=encoder.logit_scale,
        progress=0.3,
    )  # fmt: skip
    output["loss"].backward()
    value: Tensor = output["loss"]
    return value


@pytest.mark.parametrize("name", SETTINGS)
def test_every_objective_gets_the_whole_batchs_gradient(name: str) -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    batch, loss = batch_of(), objective(name)
    reference, expected = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    for chunk, kept in ((1, 0), (3, 0), (3, 1), (8, 0), (3, 99)):
        found, value = outcome(
            encoder, loss, lambda own, c=chunk, k=kept: through_step(encoder, own, batch, chunk=c, kept_chunks=k)
        )
        assert value == pytest.approx(expected, rel=1e-9)
        assert_equal(found, reference)


@pytest.mark.parametrize("name", SETTINGS)
def test_with_dropout_every_objective_gets_that_of_the_same_chunks(name: str) -> None:
    encoder = make_tiny_clip(layers=1, attention_dropout=0.3).double().train()
    batch, loss = batch_of(), objective(name)
    for chunk, kept in ((3, 0), (3, 1), (3, 99), (1, 2)):
        reference, expected = outcome(encoder, loss, lambda own, c=chunk: with_graph(encoder, own, batch, c))
        found, value = outcome(
            encoder, loss, lambda own, c=chunk, k=kept: through_step(encoder, own, batch, chunk=c, kept_chunks=k)
        )
        assert value == pytest.approx(expected, rel=1e-9)
        assert_equal(found, reference)


def test_a_learned_metric_gets_its_gradient_through_chunks() -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    batch, loss = batch_of(), objective("multi_positive", "bilinear")
    reference, _ = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    found, _ = outcome(encoder, loss, lambda own: through_step(encoder, own, batch, chunk=3, kept_chunks=1))
    assert "loss.similarity.weight" in reference
    assert_equal(found, reference)


@pytest.mark.parametrize("kept", [0, 1, 99])
def test_a_locked_tower_says_the_same_to_an_objective_that_asks_for_gradients(kept: int) -> None:
    """GradNorm weighs by the gradient at the embeddings: a locked tower's has none, in chunks as in one pass."""
    encoder = make_tiny_clip(layers=1).double().train()
    encoder.lock("text")
    batch, loss = batch_of(), objective("gradient_norm")
    reference, expected = outcome(encoder, loss, lambda own: with_graph(encoder, own, batch, ROWS))
    found, value = outcome(
        encoder, loss, lambda own: through_step(encoder, own, batch, chunk=3, kept_chunks=kept, learning=("image",))
    )
    assert value == pytest.approx(expected, rel=1e-9)
    assert not any(name.startswith("text_") for name in found)
    assert_equal(found, reference)


def test_under_bf16_chunks_differ_by_less_than_its_rounding() -> None:
    encoder, loss = make_tiny_clip().train(), CLIPContrastiveLoss()
    exact = make_tiny_clip().double().train()
    batch = batch_of()
    step_of(exact, loss, None)(batch)
    reference = gradients(exact)
    batch["pixels"] = batch["pixels"].float()

    def low(chunk: int | None, kept: int = 0) -> dict[str, Tensor]:
        step = step_of(encoder, loss, chunk)
        step.autocast, step.kept_chunks = lambda: torch.autocast("cpu", torch.bfloat16), kept
        step(batch)
        return {name: value.double() for name, value in gradients(encoder).items()}

    def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        total = sum(float((one[name] - value).square().sum()) for name, value in other.items())
        return (total / sum(float(value.square().sum()) for value in other.values())) ** 0.5

    whole = low(None)
    rounding = apart(whole, reference)
    assert 1e-3 < rounding < 0.1  # bf16 keeps eight bits
    for chunk, kept in ((1, 0), (3, 0), (3, 2)):
        assert apart(low(chunk, kept), whole) <= rounding
        assert apart(low(chunk, kept), reference) <= 1.5 * rounding


class _Saved:
    """A tensor that autograd keeps, and the pass that made it."""

    def __init__(self, tensor: Tensor, owner: int) -> None:
        self.tensor, self.owner = tensor, owner


@pytest.mark.parametrize(("kept", "most"), [(0, 1), (1, 1), (2, 2), (5, 5), (99, 7)])
def test_no_more_graphs_are_alive_than_may_be_kept(kept: int, most: int) -> None:
    encoder = make_tiny_clip(layers=1).double().train()
    alive: weakref.WeakSet[_Saved] = weakref.WeakSet()
    passes: list[tuple[str, int, bool]] = []
    peak = 0

    def watched(tower: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            nonlocal peak
            number = len(passes)
            passes.append((tower, len(inputs[0]), torch.is_grad_enabled()))

            def pack(tensor: Tensor) -> _Saved:
                saved = _Saved(tensor, number)
                alive.add(saved)
                return saved

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
                embeds = encode(*inputs)
            peak = max(peak, len({saved.owner for saved in alive}))
            return embeds

        return run

    step = step_of(encoder, CLIPContrastiveLoss(), 2)
    step.kept_chunks = kept
    step.encode_image = watched("image", encoder.encode_image)
    step.encode_text = watched("text", encoder.encode_text)
    step(batch_of())
    assert peak == most
    assert not alive
    chunks = [("image", 2)] * 4 + [("text", 2)] * 2 + [("text", 1)]  # five distinct captions
    first = [(*chunk, number < kept) for number, chunk in enumerate(chunks)]
    assert passes == first + [(*chunk, True) for chunk in chunks[kept:]]


def test_a_first_pass_leaves_no_tensor_behind() -> None:
    """One that is made between two passes and stays keeps a C allocator from using the space around it again: wide
    towers took 145 MiB where they now take 22, each chunk of the first pass some more."""
    encoder = make_tiny_clip(layers=1).double().train()
    counts: dict[str, list[int]] = {"image": [], "text": []}

    def watched(tower: str, encode: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                counts[tower].append(sum(type(value) is Tensor for value in gc.get_objects()))
            return encode(*inputs)

        return run

    step = step_of(encoder, CLIPContrastiveLoss(), 1)
    step.encode_image = watched("image", encoder.encode_image)
    step.encode_text = watched("text", encoder.encode_text)
    gc.collect()
    step(batch_of())
    for tower, passes in (("image", ROWS), ("text", 5)):
        assert len(counts[tower]) == passes
        assert len(set(counts[tower][1:])) == 1  # the first one brings the room for all


def _clip(_: Path) -> DualEncoder:
    return make_tiny_clip()


def _vision_text(folder: Path) -> DualEncoder:
    path = save_vision_text(folder / "joined", folder / "parts")
    return load_encoder(ModelSettings(model_name=str(path)))


def _siglip(folder: Path) -> DualEncoder:
    return load_encoder(ModelSettings(model_name=str(save_siglip(folder / "siglip"))))


@pytest.mark.parametrize("build", [_clip, _vision_text, _siglip])
@pytest.mark.parametrize("loss", [CLIPContrastiveLoss(), MultiPositiveContrastiveLoss()])
def test_the_lean_batch_equals_the_plain_one(
    tiny_data: TinyData, tmp_path: Path, build: Callable[[Path], DualEncoder], loss: Loss
) -> None:
    """Padding to the longest and encoding equal captions once change nothing: loss and every gradient."""
    encoder = build(tmp_path).double().train()
    config = CLIPFinetuningConfig(
        model_name="tiny", image_resolution=32, max_sequence_length=min(77, encoder.text_length), num_workers=0
    )
    dataset = CLIPDataset(tiny_data.pairs(), encoder.processor, config)
    rows = list(range(len(dataset)))

    plain = collate_fn([dataset[row] for row in rows])
    images = encoder.encode_image(plain["pixel_values"].double())
    texts = encoder.encode_text(plain["input_ids"], plain["attention_mask"])
    groups = torch.tensor([dataset.texts.index(caption) for caption in plain["captions"]])
    naive = loss(images, texts, group_ids=groups, logit_scale=encoder.logit_scale)["loss"]
    naive.backward()
    reference = gradients(encoder)

    batch = PairCollator(dataset)([dataset.fetch(row) for row in rows])
    distinct, length = batch["input_ids"].shape
    assert distinct == len(set(plain["captions"])) < len(rows)
    assert batch["pixels"].dtype == torch.uint8
    if not encoder.is_siglip:
        assert length < encoder.text_length == plain["input_ids"].shape[1]
    spec = dataset.image_transform.spec
    step = step_of(encoder, loss, None)
    # float32 as the plain path normalises; the difference that is tested is elsewhere
    step.encode_image = lambda pixels: encoder.encode_image(spec.normalise(pixels).double())
    output = step(batch)
    assert float(output["loss"]) == pytest.approx(float(naive.detach()), rel=1e-9)
    assert_equal(gradients(encoder), reference)
