"""A domain's captions and prompts where they are used: training, evaluation, inference and the check of the data."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig
from domainclip.config.settings import DEFAULT_TEMPLATES
from domainclip.config.text_preprocessing import TextPreprocessing
from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.store import ImageStore
from domainclip.data.records import ImageTextPair
from domainclip.domains.files import load_domain
from domainclip.domains.recipes import caption_steps, with_models_domain, write_domain
from domainclip.evaluation.build import build_evaluator
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.inference.prompts import class_prompts, classifier_weights
from domainclip.pipelines import CLIPFinetuningController
from domainclip.pipelines.assemble import training_captions
from domainclip.resolve import DataFacts, ModelFacts, resolve, resolve_for_inference

MODEL = ModelFacts(224, 77, False, "transformer", "transformer", 0.01)
DATA = DataFacts(
    train_rows=100, repeated_caption_fraction=0.0, labelled_fraction=1.0, classes=3, names_left_right=False, cores=2
)
DOMAIN = """
texts:
  glossary: words.yaml
  expand_abbreviations: true
  truncation: sentences
  synonym_fraction: 0.5
prompts:
  templates: ["a scan of {}.", "{}"]
  class_names:
    sky: [open sky, blue sky]
"""
WORDS = """
abbreviations:
  TX: a texture
synonyms:
  - [texture, surface]
  - [photo, picture]
"""


@pytest.fixture
def domain(tmp_path: Path) -> str:
    (tmp_path / "words.yaml").write_text(WORDS, encoding="utf-8")
    path = tmp_path / "mine.yaml"
    path.write_text(DOMAIN, encoding="utf-8")
    return str(path)


def prompts_of(config: CLIPFinetuningConfig) -> list[str]:
    return resolve_for_inference(config).evaluation.prompt_templates


def test_the_domains_prompts_hold_where_the_user_set_none(domain: str) -> None:
    run = resolve(CLIPFinetuningConfig(domain=domain), MODEL, DATA)
    recipe, decisions = run.recipe, list(run.decisions)
    assert recipe.prompt_templates == ["a scan of {}.", "{}"]
    assert "prompt pack" in next(d.reason for d in decisions if d.key == "prompt_templates")
    assert prompts_of(CLIPFinetuningConfig(domain=domain)) == ["a scan of {}.", "{}"]
    own = CLIPFinetuningConfig(domain=domain, prompt_templates=["mine: {}"])
    assert prompts_of(own) == resolve(own, MODEL, DATA).recipe.prompt_templates == ["mine: {}"]
    assert prompts_of(CLIPFinetuningConfig()) == list(DEFAULT_TEMPLATES)


def test_a_resolved_recipe_holds_the_glossary(tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text(WORDS, encoding="utf-8")
    steps = {"glossary": str(words), "expand_abbreviations": True}
    recipe = resolve(CLIPFinetuningConfig(text_preprocessing=steps), MODEL, DATA).recipe
    words.unlink()
    again = CLIPFinetuningConfig(**recipe.to_dict())
    assert CaptionPipeline(caption_steps(again))("TX of grass") == "A texture of grass"


def test_class_names_are_averaged_over() -> None:
    torch.manual_seed(0)
    table: dict[str, torch.Tensor] = {}

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.stack([table.setdefault(text, torch.randn(8)) for text in texts])

    names = {"a": ["first", "second"], "b": ["b"]}
    prompts = class_prompts(["a", "b"], ["one {}", "two {}"], names_of=names.__getitem__)
    assert prompts == {"a": ["one first", "two first", "one second", "two second"], "b": ["one b", "two b"]}
    rows = classifier_weights(encode, prompts)
    mean = sum(F.normalize(table[text].double(), dim=0) for text in prompts["a"]) / 4
    torch.testing.assert_close(rows[0].double(), F.normalize(mean, dim=0), atol=1e-6, rtol=0)


def test_training_shows_views_that_seed_epoch_and_row_choose(tiny_data, processor, domain: str) -> None:
    run = resolve(CLIPFinetuningConfig(domain=domain, num_workers=0), MODEL, DATA)
    recipe = run.recipe
    pairs = [ImageTextPair(p.image_path, p.caption.replace("a texture", "TX"), p.label) for p in tiny_data.pairs()]
    parts = training_captions(run, processor)
    data = CLIPDataset(pairs, processor, recipe, **parts)
    plain = CLIPDataset(pairs, processor, recipe)
    assert torch.equal(data.group_ids, plain.group_ids)  # another way of saying it makes no other group
    shown = [[data.texts[data.text_index((epoch, row))] for epoch in range(30)] for row in range(len(data))]
    again = CLIPDataset(pairs, processor, recipe, **training_captions(run, processor))
    assert shown == [[again.texts[again.text_index((e, r))] for e in range(30)] for r in range(len(again))]
    for pair, texts in zip(pairs, shown, strict=True):
        written = parts["text_transform"](pair.caption)
        assert set(texts) == set(parts["caption_views"](pair.caption))
        assert "TX" not in written and len(set(texts)) > 1
        swapped = {text.lower().replace("surface", "texture").replace("a picture", "a photo") for text in texts}
        assert swapped == {written.lower()}
    for text, ids in zip(data.texts, data.tokens, strict=True):
        assert ids.tolist() == processor.token_ids([text])[0]
    batch = next(iter(training_loader(data, recipe.model_copy(update={"batch_size": 6}), 6)))
    assert len(batch["captions"]) == 6 and set(batch["captions"]) <= {text for texts in shown for text in texts}
    copy = pickle.loads(
        pickle.dumps(CLIPDataset(pairs, processor, recipe, images=ImageStore(0), **parts))
    )  # a spawned worker's
    assert copy.texts[copy.text_index((7, 3))] == shown[3][7]


def test_one_treatment_in_inference_and_evaluation(tiny_data, tmp_path: Path, domain: str) -> None:
    controller = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", domain=domain, num_workers=0))
    controller.setup()
    embeds = controller.encode_text(["TX of sky", "A texture of sky", "TX"])
    torch.testing.assert_close(embeds[0], embeds[1], atol=0, rtol=0)
    assert not torch.equal(embeds[0], embeds[2])
    pairs = [
        ImageTextPair(pair.image_path, ("TX of " if row % 2 else "a texture of ") + str(pair.label), pair.label)
        for row, pair in enumerate(tiny_data.pairs())
    ]
    evaluator = build_evaluator(controller.session, pairs)
    assert evaluator.zero_shot is not None and evaluator.retrieval is not None
    assert evaluator.zero_shot.prompts["sky"] == ["a scan of open sky.", "open sky", "a scan of blue sky.", "blue sky"]
    assert len(evaluator.retrieval.captions) == 3  # "TX of sky" is "a texture of sky": finding either is a hit
    found = controller.evaluate(pairs)
    # The same figures from captions and prompts that were written out by hand.
    by_hand = CLIPFinetuningController(CLIPFinetuningConfig(model_name="tiny", num_workers=0))
    by_hand.setup()
    written = [ImageTextPair(pair.image_path, f"a texture of {pair.label}", pair.label) for pair in pairs]
    prompts = {label: [f"a scan of {label}.", label] for label in ("brick", "grass")}
    prompts["sky"] = evaluator.zero_shot.prompts["sky"]
    want = DomainEvaluator(written, prompts=prompts).evaluate(by_hand.engine())
    for name, value in want.metrics.items():
        assert found.metrics[name] == pytest.approx(value), name


def test_the_check_counts_captions_that_would_be_cut(tmp_path: Path, domainclip: Callable[..., object]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 9), "red").save(tmp_path / "b.png")
    short = "CT scan " * 20  # 42 tokens as it is, 62 with the abbreviation written out
    rows = [("a.png", short), ("b.png", "A short one. " + "word " * 90)]
    table = tmp_path / "rows.csv"
    table.write_text("image_path,caption\n" + "".join(f"{a},{b}\n" for a, b in rows), encoding="utf-8")
    plain = domainclip("data", "check", table, "max_sequence_length=50")
    assert "more than 50 tokens: 1 of 2 captions (50.0%), cut" in plain.out
    steps = "text_preprocessing={glossary: medical, expand_abbreviations: true, truncation: sentences}"
    written = domainclip("data", "check", table, "max_sequence_length=50", steps)
    assert "more than 50 tokens: 2 of 2 captions (100.0%), cut" in written.out
    assert "whole sentences" in written.out


def test_off_means_off(processor) -> None:
    assert training_captions(resolve_for_inference(CLIPFinetuningConfig()), processor)["caption_views"] is None
    assert not TextPreprocessing().model_dump(exclude_defaults=True)


def test_a_recipes_own_steps_go_with_the_model(tmp_path: Path) -> None:
    words = tmp_path / "words.yaml"
    words.write_text(WORDS, encoding="utf-8")
    steps = {"glossary": str(words), "expand_abbreviations": True, "synonym_fraction": 0.25}
    run = resolve(CLIPFinetuningConfig(domain="medical", text_preprocessing=steps), MODEL, DATA)
    words.unlink()
    write_domain(run.domain, tmp_path)
    kept = load_domain(tmp_path / "domain.yaml")
    assert CaptionPipeline(kept.texts)("TX of grass") == "A texture of grass"
    assert kept.texts.synonym_fraction == 0.25 and kept.texts.truncation == "tokens"  # the medical one's are replaced
    assert kept.images == load_domain("medical").images
    config, domain, note = with_models_domain(CLIPFinetuningConfig(model_name=str(tmp_path)))
    assert note is not None and caption_steps(config) == domain.texts == kept.texts
