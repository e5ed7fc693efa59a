"""Terminology scores: hand-made text towers whose right answers are known, and plain loops beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from domainclip.config.glossary import Glossary, load_glossary
from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, ShapeError
from domainclip.evaluation.terminology import TerminologyEvaluator, uses_terms

GLOSSARY = Glossary(
    abbreviations={
        "MI": "myocardial infarction",
        "CXR": "chest X-ray",
        "PE": [
            {"expansion": "pulmonary embolism", "context": ["clot"]},
            {"expansion": "pleural effusion", "context": ["fluid"]},
        ],
    },
    synonyms=[
        ["heart attack", "myocardial infarction"],
        ["oedema", "edema", "swelling"],
        ["pleural effusion", "fluid"],
    ],
    negation_pairs=[("oedema", "no oedema"), ("intact", "broken")],
)


class Tower:
    """Texts to unit vectors: the given ones, and for any other text a direction of its own."""

    def __init__(self, vectors: dict[str, list[float]] | None = None, dim: int = 64) -> None:
        self.vectors, self.dim = vectors or {}, dim
        self.asked: list[str] = []

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        self.asked += texts
        return F.normalize(torch.stack([self.one(text) for text in texts]), dim=1)

    def one(self, text: str) -> torch.Tensor:
        if text in self.vectors:
            return torch.tensor(self.vectors[text])
        return torch.randn(self.dim, generator=torch.Generator().manual_seed(sum(map(ord, text)) * 7919 + len(text)))

    def encode_images(self, paths: list[Path]) -> torch.Tensor:
        return self.encode_texts([str(path) for path in paths])


def meant(evaluator: TerminologyEvaluator, term: str) -> set[str]:
    row = evaluator.terms.index(term)
    return {evaluator.terms[mate] for mate in evaluator.same_meaning[row].nonzero().flatten().tolist()}


def test_what_means_the_same() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY)
    assert meant(evaluator, "MI") == {"myocardial infarction", "heart attack"}  # through the expansion
    assert meant(evaluator, "heart attack") == {"myocardial infarction", "MI"}
    assert meant(evaluator, "edema") == {"oedema", "swelling"}
    # Two senses: either is right for the abbreviation, and neither sense means the other.
    assert meant(evaluator, "PE") == {"pulmonary embolism", "pleural effusion", "fluid"}
    assert meant(evaluator, "pulmonary embolism") == {"PE"}
    assert meant(evaluator, "fluid") == {"pleural effusion", "PE"}
    assert len(evaluator.terms) == len({term.casefold() for term in evaluator.terms})


def test_term_scores_are_those_of_plain_loops() -> None:
    evaluator, tower = TerminologyEvaluator(GLOSSARY), Tower(dim=6)
    metrics = evaluator.evaluate(tower).metrics
    ranks: dict[str, int] = {}
    for term in evaluator.terms:
        own = F.normalize(tower.one(term), dim=0)
        order = sorted(
            (other for other in evaluator.terms if other != term),
            key=lambda other, own=own: -float(own @ F.normalize(tower.one(other), dim=0)),
        )
        ranks[term] = 1 + next(index for index, other in enumerate(order) if other in meant(evaluator, term))
    assert len(ranks) == len(evaluator.terms)
    assert metrics["term_Hits@1"] == pytest.approx(np.mean([rank == 1 for rank in ranks.values()]))
    assert metrics["term_Hits@5"] == pytest.approx(np.mean([rank <= 5 for rank in ranks.values()]))
    assert metrics["term_MRR"] == pytest.approx(np.mean([1 / rank for rank in ranks.values()]))
    assert metrics["abbreviation_Hits@1"] == pytest.approx(np.mean([ranks[s] == 1 for s in GLOSSARY.abbreviations]))
    synonyms = [term for group in GLOSSARY.synonyms for term in group]
    assert metrics["synonym_Hits@1"] == pytest.approx(np.mean([ranks[term] == 1 for term in synonyms]))


def test_chance_is_what_random_towers_score() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY)
    found = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        score = evaluator.score(None, lambda texts, g=generator: torch.randn(len(texts), 32, generator=g))
        found.append(score.metrics["term_Hits@1"])
    assert np.mean(found) == pytest.approx(score.details["terminology"]["chance_Hits@1"], abs=0.03)


def test_a_tower_that_knows_and_one_that_has_collapsed() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY)
    axis = {
        "MI": 0,
        "myocardial infarction": 0,
        "heart attack": 0,
        "CXR": 1,
        "chest X-ray": 1,
        "oedema": 2,
        "edema": 2,
        "swelling": 2,
        "PE": 3,
        "pulmonary embolism": 3,
        "pleural effusion": 4,
        "fluid": 4,
    }
    knowing = Tower({term: [float(index == row) for index in range(64)] for term, row in axis.items()})
    result = evaluator.evaluate(knowing)
    assert result.metrics["term_Hits@1"] == 1.0
    assert result.details["terminology"]["missed"] == []
    same = evaluator.score(None, lambda texts: torch.ones(len(texts), 4))
    assert same.metrics["term_Hits@1"] == 0.0 and same.metrics["negation_accuracy"] == 0.0


def test_misses_say_what_came_first_and_what_was_meant() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY)
    tower = Tower({"CXR": [1.0, 0.2] + [0.0] * 62, "MI": [1.0, 0.0] + [0.0] * 62})
    missed = {row["term"]: row for row in evaluator.evaluate(tower).details["terminology"]["missed"]}
    assert missed["CXR"]["nearest"] == "MI" and missed["CXR"]["meant"] == ["chest X-ray"]
    assert missed["CXR"]["rank"] > 1


def test_spelling_alone_finds_edema_but_no_other_word_for_it() -> None:
    glossary = Glossary(synonyms=[["oedema", "edema"], ["pyrexia", "raised temperature"]])
    spelling = TerminologyEvaluator(glossary).evaluate(Tower()).details["terminology"]["spelling"]
    assert spelling["synonym_Hits@1"] == 0.5


def test_negation_is_counted_as_its_definition_says() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY)
    tower = Tower({"no oedema": [0.1] * 63 + [9.0]}, dim=64)
    result = evaluator.evaluate(tower)
    accuracies, drops = [], []
    for (statement, negation), paraphrases in zip(GLOSSARY.negation_pairs, evaluator._paraphrases, strict=True):
        own = F.normalize(tower.one(statement), dim=0)
        negated = float(own @ F.normalize(tower.one(negation), dim=0))
        kept = [float(own @ F.normalize(tower.one(text), dim=0)) for text in paraphrases]
        accuracies.append(np.mean([value > negated for value in kept]))
        drops.append(np.mean(kept) - negated)
    assert result.metrics["negation_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert result.metrics["negation_drop"] == pytest.approx(np.mean(drops), abs=1e-6)
    assert {"swelling", "edema", "findings: oedema"} <= set(evaluator._paraphrases[0])
    assert "oedema" not in evaluator._paraphrases[0]


def images() -> list[ImageTextPair]:
    return [
        ImageTextPair(f"{label}_{index}.png", "a scan", label)
        for label in ("tumour", "cyst", "normal")
        for index in range(4)
    ]


def test_images_of_a_class_are_held_against_its_negation() -> None:
    evaluator = TerminologyEvaluator(GLOSSARY, images())
    assert evaluator.classes == ["cyst", "tumour"]  # "normal" is a negation itself
    axes = {
        "tumour": [1.0, 0.0, 0.0],
        "cyst": [0.0, 1.0, 0.0],
        "no tumour": [0.0, 0.5, 0.5],
        "no cyst": [0.5, 0.0, 0.5],
    }
    vectors = dict(axes)
    for index in range(4):
        vectors |= {f"tumour_{index}.png": axes["tumour"], f"cyst_{index}.png": axes["cyst"]}
        vectors[f"normal_{index}.png"] = [0.0, 0.0, 1.0]
    metrics = evaluator.evaluate(Tower(vectors, dim=3)).metrics
    assert metrics["image_negation_accuracy"] == 1.0 and metrics["image_negation_auroc"] == 1.0
    deaf = dict(vectors)
    for label in ("tumour", "cyst"):  # "no X" is X, weaker: such a tower always affirms
        deaf[f"no {label}"] = [0.9 * value + 0.2 * (position == 2) for position, value in enumerate(axes[label])]
        for index in range(4):
            deaf[f"normal_{index}.png"] = [1.0, 1.0, 0.0]
            deaf[f"{label}_{index}.png"] = [1.0, 1.0, 0.0]
    metrics = evaluator.evaluate(Tower(deaf, dim=3)).metrics
    assert metrics["image_negation_accuracy"] == 0.5 and metrics["image_negation_auroc"] == 0.5


def test_templates_and_class_names_make_the_claims() -> None:
    templates = (("{} is seen", "{} is not seen"), ("{}", "no {}"))
    evaluator = TerminologyEvaluator(Glossary(), images(), templates, {"tumour": ["neoplasm"]})
    tower = Tower()
    result = evaluator.evaluate(tower)
    assert {"neoplasm is seen", "neoplasm is not seen", "no neoplasm", "no cyst"} <= set(tower.asked)
    assert "no tumour" not in tower.asked
    assert set(result.metrics) == {"image_negation_accuracy", "image_negation_auroc"}


def test_nothing_to_score_is_refused() -> None:
    with pytest.raises(DataError, match="Nothing to score terminology by"):
        TerminologyEvaluator(Glossary())
    with pytest.raises(ShapeError, match="12 texts gave embeddings"):
        TerminologyEvaluator(GLOSSARY).score(None, lambda texts: torch.ones(2, 4))


@pytest.mark.parametrize("name", ["medical", "industrial", "scientific"])
def test_shipped_glossaries_give_something_of_every_kind(name: str) -> None:
    result = TerminologyEvaluator(load_glossary(name)).evaluate(Tower())
    assert {"term_Hits@1", "synonym_Hits@1", "abbreviation_Hits@1", "negation_accuracy"} <= set(result.metrics)


def test_intervals_hold_the_figures_they_are_of() -> None:
    result = TerminologyEvaluator(load_glossary("medical"), resamples=200).score(None, Tower().encode_texts)
    for name, found in result.records.items():
        low, high = found.ends
        assert low <= result.metrics[name] <= high and (low < high or result.metrics[name] == 0)


def test_terms_are_encoded_by_their_own_encoder_and_the_rest_by_the_other() -> None:
    plain, expanding = Tower(), Tower()
    TerminologyEvaluator(GLOSSARY, images(), encode_terms=plain.encode_texts).score(
        plain.encode_images([Path(f"{index}.png") for index in range(12)]), expanding.encode_texts
    )
    assert "CXR" in plain.asked and "CXR" not in expanding.asked
    assert "no tumour" in expanding.asked and "no tumour" not in plain.asked


@pytest.mark.parametrize("what", ["texts", "images"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_has_diverged_is_said(what: str, value: float) -> None:
    pairs = [ImageTextPair(f"/{n}.png", "a caption", "ab"[n % 2]) for n in range(4)]
    evaluator = TerminologyEvaluator(GLOSSARY, pairs)
    images = torch.full((4, 64), value) if what == "images" else None
    encode = Tower().encode_texts if what == "images" else lambda texts: torch.full((len(texts), 64), value)
    with pytest.raises(ShapeError, match=f"embeddings of the {what} contain NaN or infinity"):
        evaluator.score(images, encode)


def test_a_glossary_that_no_caption_speaks_is_left_alone() -> None:
    glossary = Glossary(synonyms=[["kidney", "renal organ"], ["heart", "cor"], ["with", "having"]])
    assert not uses_terms(glossary, ["a brick wall with moss", "the HEART of a city"])
    assert uses_terms(glossary, ["a brick wall with moss", "the HEART of a city", "One kidney."])
    assert not uses_terms(glossary, ["hearts, kidneys, without"])  # whole words alone
