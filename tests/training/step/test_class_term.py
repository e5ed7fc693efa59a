"""Telling classes apart by their prompts while the towers learn: against a plain loop, in micro-batches, and in a
run."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.losses.contrastive import MultiPositiveContrastiveLoss
from domainclip.models import DualEncoder, make_tiny_clip
from domainclip.models.facts import model_facts
from domainclip.resolve import resolve
from domainclip.resolve.facts import data_facts
from domainclip.training.step import class_term
from domainclip.training.step.class_term import ClassificationTerm
from domainclip.training.step.gradcache import ContrastiveStep
from tiny_data import TinyData

CPU = torch.device("cpu")


def term_of(encoder: DualEncoder, data: TinyData, prompts: dict[str, list[str]], weight: float = 0.7):
    config = CLIPFinetuningConfig()
    transform = ImageTransform(config, False, ImageSpec.from_processor(encoder.processor.image_processor))
    dataset = CLIPDataset(data.pairs(), encoder.processor, config, transform)
    return ClassificationTerm(encoder, prompts, dataset, weight, 5, CPU, contextlib.nullcontext), dataset


def prompts_of(data: TinyData, templates: tuple[str, ...] = ("a photo of {}",)) -> dict[str, list[str]]:
    labels = sorted({pair.label for pair in data.pairs() if pair.label})
    return {label: [template.format(label) for template in templates] for label in labels}


def test_it_is_the_cross_entropy_of_the_zero_shot_classifier(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip(3).double().eval()
    prompts = prompts_of(tiny_data)
    term, data = term_of(encoder, tiny_data, prompts)
    rows = torch.tensor([0, 5, 7, 11])
    images = torch.randn(4, encoder.embedding_dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = term(images, term.classes(rows))
    ids, mask = encoder.processor.pad(
        [list(ids) for ids in encoder.processor.token_ids([texts[0] for texts in prompts.values()], 77)], 77
    )
    texts = F.normalize(encoder.encode_text(ids, mask), dim=-1)
    expected = 0.0
    for image, row in zip(images, rows.tolist(), strict=True):
        logits = (texts @ F.normalize(image, dim=0)) * encoder.logit_scale.exp()
        expected -= float(logits.detach().log_softmax(0)[list(prompts).index(str(data.pairs[row].label))])
    assert found.item() == pytest.approx(0.7 * expected / 4, rel=1e-9)


def test_rows_without_a_class_do_not_count(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip(3).eval()
    prompts = prompts_of(tiny_data)
    left_out = next(iter(prompts))
    del prompts[left_out]
    term, data = term_of(encoder, tiny_data, prompts)
    rows = torch.arange(len(data.pairs))
    classes = term.classes(rows)
    assert [int(c) == -1 for c in classes] == [pair.label == left_out for pair in data.pairs]
    images = torch.randn(len(rows), encoder.embedding_dim)
    kept = classes >= 0
    torch.testing.assert_close(term(images, classes), term(images[kept], classes[kept]))
    assert term(images[~kept], classes[~kept]).item() == 0.0


def test_sentences_change_from_step_to_step_and_are_the_same_for_one_step(tiny_data: TinyData) -> None:
    encoder = make_tiny_clip(3).eval()
    term, _ = term_of(encoder, tiny_data, prompts_of(tiny_data, ("a photo of {}", "some {}", "{} seen from near")))
    images, classes = torch.randn(6, encoder.embedding_dim), term.classes(torch.arange(6))
    values = []
    for step in range(8):
        term.step = step
        values.append(term(images, classes).item())
        assert term(images, classes).item() == values[-1]
    assert len(set(values)) > 2


def test_of_many_classes_the_batchs_are_always_shown(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_term, "LARGEST", 2)
    encoder = make_tiny_clip(3).eval()
    prompts = prompts_of(tiny_data)
    assert len(prompts) == 3
    term, data = term_of(encoder, tiny_data, prompts)
    assert term.sentences == 2
    for row, pair in enumerate(data.pairs):
        shown, targets = term._shown(term.classes(torch.tensor([row])))
        assert len(shown) == 2
        assert list(prompts)[shown[int(targets[0])]] == pair.label


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_gradient_of_the_whole_batch(micro_batch: int, tiny_data: TinyData) -> None:
    encoder = make_tiny_clip(3).double().eval()
    term, data = term_of(encoder, tiny_data, prompts_of(tiny_data))
    objective = MultiPositiveContrastiveLoss()
    rows = torch.arange(7)
    ids, mask = encoder.processor.pad([list(data.tokens[data.shown_texts(int(row))[0]]) for row in rows], 40)
    resolution = encoder.native_resolution
    batch = {
        "pixels": torch.randn(
            7, 3, resolution, resolution, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
        ),
        "input_ids": ids,
        "attention_mask": mask,
        "caption_index": torch.arange(7),
        "group_ids": torch.tensor([0, 0, 1, 1, 2, 2, 0]),
        "classes": term.classes(rows),
    }
    gradients = []
    for size in (None, micro_batch):
        encoder.zero_grad(set_to_none=True)
        step = ContrastiveStep(
            encoder.encode_image,
            encoder.encode_text,
            lambda images, texts, groups: objective(images, texts, groups, encoder.logit_scale),
            contextlib.nullcontext,
            CPU,
            size,
            classification=term,
        )
        reported = step(batch)
        assert float(reported["classification"]) > 0
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_it_is_on_where_rows_have_labels(tiny_data: TinyData, tmp_path: Path) -> None:
    encoder = make_tiny_clip(3)
    pairs = tiny_data.pairs()
    run = resolve(CLIPFinetuningConfig(model_name="tiny"), model_facts(encoder), data_facts(pairs))
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.classification_weight == 1.0
    assert any(d.key == "classification_weight" and "3 classes" in d.reason for d in decisions)
    bare = [type(pair)(pair.image_path, pair.caption) for pair in pairs]
    recipe = resolve(CLIPFinetuningConfig(model_name="tiny"), model_facts(encoder), data_facts(bare)).recipe
    assert recipe.classification_weight == 0.0
    config = CLIPFinetuningConfig(
        model_name="tiny", batch_size=6, max_steps=2, num_workers=0, logging_steps=1, probe_first=False
    )
    controller = CLIPFinetuningController(config)
    controller.setup()
    controller.fine_tune(pairs, None, tmp_path)
    assert '"classification":' in (tmp_path / "metrics.jsonl").read_text()
