"""Rehearsed rows: the penalty against its definition, its gradient in any chunks, and what it keeps in a run."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data.images.image_spec import ImageSpec
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.pipelines.reference_sets import load_reference_sets
from domainclip.training.identity import check_same_run
from domainclip.training.regularization.rehearsal import BATCH_FRACTION, Rehearsal
from tiny_data import TinyData

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
STRENGTH = 3.0


def moved(encoder: DualEncoder) -> None:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=0.02)


def rehearsal_of(encoder: DualEncoder, rows: int = 9) -> Rehearsal:
    resolution = encoder.native_resolution
    pixels = torch.randint(0, 256, (rows, 3, resolution, resolution), generator=torch.Generator().manual_seed(2)).to(
        torch.uint8
    )
    tokens = encoder.processor.token_ids([f"a photo of thing number {row}" for row in range(rows)], 77)
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    return Rehearsal(encoder, pixels, tokens, spec.normalise, STRENGTH, 4, CPU, contextlib.nullcontext)


def by_hand(encoder: DualEncoder, start: list[tuple[Tensor, Tensor]], rehearsal: Rehearsal, rows: list[int]) -> Tensor:
    """Row by row."""
    total = torch.zeros(())
    for row in rows:
        image = encoder.encode_image(rehearsal.normalise(rehearsal.pixels[row : row + 1]).to(encoder.dtype))[0]
        text = encoder.encode_text(rehearsal.input_ids[row : row + 1], rehearsal.mask[row : row + 1])[0]
        for now, before in zip((image, text), start[row], strict=True):
            total = total + (1 - F.cosine_similarity(now, before, dim=0)) / len(rows)
    return 0.5 * STRENGTH * total


def test_it_has_the_gradient_of_its_definition_in_any_micro_batches() -> None:
    encoder = make_tiny_clip(3).eval()
    rehearsal = rehearsal_of(encoder)
    with torch.no_grad():
        start = [
            (
                encoder.encode_image(rehearsal._pixel_values(torch.tensor([row])))[0],
                encoder.encode_text(*rehearsal._tokens(torch.tensor([row])))[0],
            )
            for row in range(len(rehearsal))
        ]
    assert float(rehearsal.add_gradient(0, 100, 4)) == pytest.approx(0, abs=1e-5), "nothing has moved yet"
    moved(encoder)
    expected: dict[str, Tensor] = {}
    for micro_batch in (1, 4, 100):
        encoder.zero_grad(set_to_none=True)
        reported = rehearsal.add_gradient(
            step=5, batch=100, micro_batch=micro_batch
        )  # a quarter of 100 is more than there are: all
        found = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
        if not expected:
            encoder.zero_grad(set_to_none=True)
            value = by_hand(encoder, start, rehearsal, list(range(len(rehearsal))))
            value.backward()
            expected = {name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None}
            assert float(value.detach()) > 0.001
        assert float(reported) == pytest.approx(float(value.detach()), rel=1e-4)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_a_draw_depends_on_the_step_and_leaves_the_encoder_as_it_was() -> None:
    encoder = make_tiny_clip(3).train()
    rehearsal = rehearsal_of(encoder)
    moved(encoder)
    state = torch.get_rng_state()
    values = [float(rehearsal.add_gradient(step, 8, 8)) for step in (1, 2, 3, 1)]
    assert values[0] == values[3] and len(set(values)) == 3
    assert rehearsal.rows_of(8) == 8 * BATCH_FRACTION
    assert encoder.training and torch.equal(torch.get_rng_state(), state)


def test_the_projections_alone_have_the_same_penalty() -> None:
    encoder = make_tiny_clip(3).eval()
    rehearsal = rehearsal_of(encoder)
    penalty = rehearsal.of_projections()
    with torch.no_grad():
        for name, parameter in encoder.model.named_parameters():
            if "projection.weight" in name:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.05)
    encoder.zero_grad(set_to_none=True)
    value = penalty()
    value.backward()
    found = encoder.model.visual_projection.weight.grad.clone()  # type: ignore[union-attr]
    encoder.zero_grad(set_to_none=True)
    assert float(value.detach()) == pytest.approx(float(rehearsal.add_gradient(0, 100, 100)), rel=1e-4)
    torch.testing.assert_close(found, encoder.model.visual_projection.weight.grad, rtol=1e-4, atol=1e-7)  # type: ignore[union-attr]


# --- in a run ---


def run(data: TinyData, folder: Path, **values: Any) -> tuple[CLIPFinetuningController, dict[str, Any]]:
    config = CLIPFinetuningConfig(
        model_name="tiny",
        batch_size=6,
        max_steps=8,
        num_epochs=9,
        num_workers=0,
        mixed_precision=False,
        learning_rate=1e-3,
        retention_data=[str(data.folder)],
        wise_ft=False,
        save_steps=4,
        **{"retention_rows": 6, **values},
    )
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    resume = (folder / "checkpoints").exists()
    return controller, controller.fine_tune(data.pairs(), None, folder, resume=resume)


def distance(controller: CLIPFinetuningController, data: TinyData) -> float:
    """How far the embeddings of the reference set's rows have gone from where they started."""
    start = make_tiny_clip(controller.config.seed)
    paths = [pair.image_path for pair in data.pairs("test")]
    now = controller.engine().encode_images(paths)
    controller.session.encoder, trained = start, controller.session.encoder
    before = controller.engine().encode_images(paths)
    controller.session.encoder = trained
    return float((1 - (now * before).sum(-1)).mean())


@pytest.mark.parametrize("probe_first", [True, False])
def test_what_is_rehearsed_stays_nearer_where_it_was(probe_first: bool, tiny_data: TinyData, tmp_path: Path) -> None:
    kept, _ = run(tiny_data, tmp_path / "kept", probe_first=probe_first, rehearsal_strength=50.0)
    assert kept.recipe is not None and kept.recipe.rehearsal_strength == 50.0
    assert '"rehearsal":' in (tmp_path / "kept" / "metrics.jsonl").read_text()
    free, _ = run(tiny_data, tmp_path / "free", probe_first=probe_first, rehearsal_strength=0.0)
    assert distance(kept, tiny_data) < 0.7 * distance(free, tiny_data)


def test_it_is_on_where_there_are_reference_set_table(tiny_data: TinyData, tmp_path: Path) -> None:
    controller, _ = run(tiny_data, tmp_path)
    assert controller.recipe is not None and controller.recipe.rehearsal_strength == 10.0
    assert any(decision.key == "rehearsal_strength" for decision in controller.decisions)


def test_other_rehearsed_rows_are_another_run(tiny_data: TinyData, tmp_path: Path) -> None:
    run(tiny_data, tmp_path)
    with pytest.raises(CheckpointError, match="rehearses other rows than this one: retention_data or retention_rows"):
        run(tiny_data, tmp_path, retention_rows=7)


def test_processes_that_rehearse_other_rows_are_told_apart() -> None:
    same = ("recipe", "rows", 0, None)
    check_same_run([(*same, "some"), (*same, "some")])
    with pytest.raises(ConfigurationError, match="different rehearsed rows"):
        check_same_run([(*same, "some"), (*same, "others")])


def test_new_projections_have_nothing_to_keep(tiny_data: TinyData, zoo: dict[str, Path]) -> None:
    config = CLIPFinetuningConfig(model_name=str(zoo["clip"]), retention_data=[str(tiny_data.folder)], retention_rows=6)
    controller = CLIPFinetuningController(config, Console(quiet=True))
    controller.setup()
    recipe = controller.prepare(tiny_data.pairs())
    reference_sets, encoder = load_reference_sets(controller.session), controller.session.encoder
    assert reference_sets is not None and encoder is not None
    assert reference_sets.rehearsed(encoder, recipe, recipe, contextlib.nullcontext) is not None
    encoder.fresh_projections = True
    with pytest.raises(ConfigurationError, match="none worth keeping"):
        reference_sets.rehearsed(encoder, recipe, recipe, contextlib.nullcontext)
