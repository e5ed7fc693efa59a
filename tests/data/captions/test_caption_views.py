"""Captions cut at sentences, negation kept, and other ways of saying them."""

from __future__ import annotations

import random
import re

import pytest

from domainclip.config.glossary import load_glossary
from domainclip.config.text_preprocessing import PromptPack, TextPreprocessing
from domainclip.data.captions.negation import NegationCues
from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.data.captions.sentences import split_sentences, split_statements
from domainclip.data.captions.truncation import SentenceTruncator
from domainclip.data.captions.views import SectionDropout, SynonymReplacer
from domainclip.errors import ConfigurationError

EVERYTHING = TextPreprocessing(
    normalise=True,
    normalise_units=True,
    glossary="medical",
    expand_abbreviations=True,
    truncation="sentences",
    synonym_fraction=0.5,
    section_dropout=0.4,
)


def words_as_tokens(texts: list[str]) -> list[int]:
    """A tokenizer that can be counted by hand: a token a word, one for the start and one for the end."""
    return [len(text.split()) + 2 for text in texts]


# --- sentences and length ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("A lesion of approx. 5 cm. No effusion.", ["A lesion of approx. 5 cm.", "No effusion."]),
        ("Fig. 3 shows 2.5 cm, e.g. here. End", ["Fig. 3 shows 2.5 cm, e.g. here.", "End"]),
        ("Seen by J. Doe. Clear.", ["Seen by J. Doe.", "Clear."]),
        ("Zone.. No effusion..", ["Zone..", "No effusion.."]),
        ("FINDINGS: clear\nIMPRESSION: normal", ["FINDINGS: clear", "IMPRESSION: normal"]),
        ("1. Mass. 2. Cyst. 3.1. No effusion.", ["1. Mass.", "2. Cyst.", "3.1. No effusion."]),  # numbers of a list
        ("a. Mass. (2). A total of 5. End", ["a. Mass.", "(2). A total of 5.", "End"]),
        ("第一句。第二句。", ["第一句。", "第二句。"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Opacity. It has grown. Clear.", ["Opacity. It has grown.", "Clear."]),
        ("A mass is suspected. CT ruled it out. Clear.", ["A mass is suspected. CT ruled it out.", "Clear."]),
        ("Fracture suspected. Not confirmed. End.", ["Fracture suspected. Not confirmed.", "End."]),
        ("CT shows a mass. MRI shows both lungs.", ["CT shows a mass.", "MRI shows both lungs."]),
    ],
)
def test_sentences_that_lean_on_the_one_before(text: str, expected: list[str]) -> None:
    assert split_statements(text) == expected


def test_whole_sentences_are_kept_while_they_fit() -> None:
    text = "One two three. Four five six. Seven eight nine."
    for limit, kept in (
        (11, text),
        (10, "One two three. Four five six."),
        (8, "One two three. Four five six."),
        (7, "One two three."),
    ):
        assert SentenceTruncator(words_as_tokens, limit).cut(text) == kept


TERMS = "aa bb cc dd ee ff gg hh ii jj kk ll mm nn oo pp"


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("Opacities in both lungs, more on the left, and a catheter.", 9, "Opacities in both lungs"),
        ("Opacities in both lungs, more on the left, and a catheter.", 10, "Opacities in both lungs, more on the left"),
        ("aa bb cc dd ee ff gg hh", 6, "aa bb cc dd"),  # no clause: at a word
        ("aa bb cc of the hh ii jj", 7, "aa bb cc"),  # without what a cut leaves hanging
        # A negation is not cut off from what it denies …
        ("Clear lungs with no evidence of any large effusion", 8, "Clear lungs"),
        ("Clear lungs, no effusion, no pneumothorax", 6, "Clear lungs, no effusion"),
        ("No evidence of effusion in either of the lungs", 7, "No evidence of effusion"),
        # … nor is what it takes back left without it.
        ("Effusion, oedema and pneumothorax are absent", 6, "pneumothorax are absent"),
        ("Consolidation of the right lower lobe has resolved", 6, "lower lobe has resolved"),
        ("Heart large; effusion and consolidation are not seen", 6, "Heart large"),
        ("Pneumothorax: no; lungs of normal size", 6, "Pneumothorax: no"),
        # Where little stands before a negation it is cut after it, not inside its words, and nothing is left hanging.
        (f"There is no evidence of {TERMS}", 12, "There is no evidence of aa bb cc dd ee"),
        (f"The lungs show no aa or any {TERMS}", 11, "The lungs show no aa or any aa bb"),
        (f"Patient denies {TERMS}", 8, "Patient denies aa bb cc dd"),
        (f"Rule out {TERMS}", 8, "Rule out aa bb cc dd"),
        (f"Absence of the {TERMS}", 5, "Absence of the"),
        (f"Free of {TERMS}", 4, "Free of"),
        ("Chest is free of aa or of any bb nor any cc in the lobes", 11, "Chest is free of aa or of any bb"),
        # A sentence that takes the first one back is not left out.
        ("Pneumothorax was suspected on the left. It was ruled out.", 9, "on the left. It was ruled out."),
        ("Pneumothorax was suspected; heart large. CT ruled it out.", 8, "heart large. CT ruled it out."),
        ("Opacity of the left lung. It has grown since then.", 8, "Opacity of the left lung."),
        ("Chest X-ray of a woman. She denied fever and cough.", 8, "Chest X-ray of a woman."),
    ],
)
def test_a_first_sentence_that_is_too_long(text: str, limit: int, kept: str) -> None:
    found = SentenceTruncator(words_as_tokens, limit).cut(text)
    assert found == kept
    assert words_as_tokens([found])[0] <= limit


def test_no_cut_of_a_negated_statement_reads_as_its_opposite() -> None:
    cues = NegationCues()
    statements = [
        "Pleural effusion, pulmonary oedema, consolidation and pneumothorax are all absent in this patient",
        "Metastasis of the liver, the lungs, the brain and the bones was ruled out",
        "There is no focal consolidation of either lung and the heart is of normal size",
        "The patient with a known tumour denies cough, fever, chest pain and shortness of breath",
        "There is no radiographic evidence of consolidation or oedema or effusion or fever in the supine position here",
        "Rule out metastasis or consolidation or effusion or oedema on this study of the chest with the given contrast",
        "Absence of the consolidation or effusion or oedema of the earlier study in the left lung and the right lung",
        "Free of consolidation or effusion or oedema or metastasis in all of the lobes that were seen on this study",
        "The lungs show no oedema or consolidation in the upper or lower lobes nor any effusion nor metastasis",
        "CT ruled consolidation out as well as metastasis of the lung and an effusion or oedema in the supine position",
        "Effusion was suspected in the lower lobe of the left lung on the first day. It was ruled out by ultrasound.",
        "Oedema isn’t seen and neither is a consolidation nor effusion in any of the lobes of either lung of this man",
        "Metastasis -ve and consolidation neg. on all of the images that were taken of this man on the first day",
    ]
    for statement in statements:
        for limit in range(5, words_as_tokens([statement])[0]):
            cut = SentenceTruncator(words_as_tokens, limit).cut(statement)
            assert words_as_tokens([cut])[0] <= limit
            if not cues.negates(cut):  # then nothing that is denied may be named
                assert not re.search(r"effusion|oedema|consolidation|metastasis|cough|fever", cut, re.I), (limit, cut)


def test_real_notes_are_cut_at_sentences(real_notes: list[str]) -> None:
    pipeline = CaptionPipeline(EVERYTHING, words_as_tokens, 40)
    long = [caption for caption in real_notes if words_as_tokens([pipeline.rewritten(caption)])[0] > 40]
    assert len(long) > 100
    at_sentences = 0
    for caption in real_notes:
        whole, cut = pipeline.rewritten(caption), pipeline(caption)
        assert words_as_tokens([cut])[0] <= 40
        assert pipeline(cut) == cut  # once more changes nothing
        if caption not in long:
            assert cut == whole
        elif (parts := split_statements(whole)) and words_as_tokens(parts[:1])[0] <= 40:
            kept = len(split_statements(cut))
            assert cut == " ".join(parts[:kept])
            assert words_as_tokens([" ".join(parts[: kept + 1])])[0] > 40  # as many as fit
            at_sentences += 1
    assert at_sentences > 100


# --- negation and views ---


@pytest.mark.parametrize(
    "text",
    [
        "no effusion",
        "No. There is none",
        "without fever",
        "cannot be seen",
        "isn't there",
        "non-productive cough",
        "effusion is absent",
        "negative for COVID",
        "denies pain",
        "ruled out",
        "CT ruled it out",
        "a ruled-out mass",
        "rules the mass out",
        "r/o mass",
        "PCR neg.",
        "neg for COVID",
        "HER2 -ve",
        "ER-ve",
        "isn’t there",
    ],
)
def test_negations_are_seen(text: str) -> None:
    assert NegationCues().negates(text)


@pytest.mark.parametrize(
    "text",
    [
        "sample no. 5",
        "a normal note",
        "nodule",
        "a nonagenarian",
        "quad flat no-lead package",
        "HER2 +ve",
        "negligible",
        "a ruled line",
    ],
)
def test_what_is_no_negation(text: str) -> None:
    assert not NegationCues().negates(text)


def test_synonyms_keep_articles_capitals_and_words() -> None:
    replace = SynonymReplacer([["X-ray", "radiograph"], ["opacity", "shadow"], ["chest X-ray", "chest film"]])
    rng = random.Random(0)
    assert replace("An X-ray with an opacity", 1.0, rng) == "A radiograph with a shadow"
    assert replace("Opacity, a shadow, a chest X-ray", 1.0, rng) == "Shadow, an opacity, a chest film"
    assert replace("X-rays and multi-opacity", 1.0, rng) == "X-rays and multi-opacity"
    assert replace("An X-ray", 0.0, rng) == "An X-ray"
    assert SynonymReplacer([["ischaemia", "ischemia"]])("ıschaemia", 1.0, rng) == "ıschaemia"


def test_synonyms_stay_in_their_group(real_notes: list[str]) -> None:
    groups = load_glossary("medical").synonyms
    replace = SynonymReplacer(groups)
    canonical = sorted(((term, group[0]) for group in groups for term in group), key=lambda pair: -len(pair[0]))
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(re.escape(t) for t, _ in canonical) + r")(?![\w-])", re.I)
    known = {term.lower(): first.lower() for term, first in canonical}

    def meaning(text: str) -> str:
        """Every term as the first of its group, articles aside."""
        return re.sub(r"\ban\b", "a", pattern.sub(lambda found: known[found[0].lower()], text.lower()))

    changed = 0
    for index, caption in enumerate(real_notes):
        other = replace(caption, 1.0, random.Random(index))
        changed += other != caption
        assert meaning(other) == meaning(caption)
    assert changed > 250


def test_dropout_leaves_out_whole_sentences_and_no_negation() -> None:
    drop = SectionDropout(NegationCues())
    text = "Chest X-ray. Left opacity. It has grown. No effusion. Heart large."
    seen = {drop(text, 0.5, random.Random(seed)) for seed in range(200)}
    assert len(seen) > 4 and text in seen
    for view in seen:
        parts = split_sentences(view)
        assert "No effusion." in parts and len(parts) > 1  # never dropped, never alone
        assert ("It has grown." in parts) == ("Left opacity." in parts)  # leans on the one before
        assert parts == [sentence for sentence in split_sentences(text) if sentence in parts]  # in their order
    suspected = "Findings: Pneumothorax was suspected. CT ruled it out. Heart is normal. Lungs are clear."
    for seed in range(50):
        assert "suspected. CT ruled it out." in drop(suspected, 0.9, random.Random(seed))
    assert drop("No effusion. No mass.", 0.9, random.Random(0)) == "No effusion. No mass."
    assert drop("One sentence.", 0.9, random.Random(0)) == "One sentence."


def test_views_of_real_notes(real_notes: list[str]) -> None:
    pipeline = CaptionPipeline(EVERYTHING, words_as_tokens, 60)
    plain = CaptionPipeline(EVERYTHING.model_copy(update={"truncation": "tokens"}))
    several = 0
    for caption in real_notes[::4]:
        views = pipeline.views(caption, seed=7)
        assert views == CaptionPipeline(EVERYTHING, words_as_tokens, 60).views(caption, seed=7)
        assert all(words_as_tokens([view])[0] <= 60 for view in views)
        several += len(set(views)) > 1
        denials = [s for s in split_sentences(plain.rewritten(caption)) if plain.cues.negates(s)]
        for view in plain.views(caption, seed=7):
            assert len([s for s in split_sentences(view) if plain.cues.negates(s)]) == len(denials), (caption, view)
    assert several > 80
    other = [pipeline.views(caption, seed=8) for caption in real_notes[:40]]
    assert other != [pipeline.views(caption, seed=7) for caption in real_notes[:40]]


def test_everything_off_changes_nothing_but_white_space(real_notes: list[str]) -> None:
    pipeline = CaptionPipeline(TextPreprocessing(), words_as_tokens, 20)
    assert not pipeline.has_views
    for caption in real_notes:
        assert pipeline(caption) == " ".join(caption.split())


# --- prompt packs ---


def test_prompt_packs_are_checked() -> None:
    pack = PromptPack(class_names={"bcc": ["basal cell carcinoma", "BCC"], "nevus": "mole"})
    assert pack.names_of("BCC ") == ["basal cell carcinoma", "BCC"]
    assert pack.names_of("Nevus") == ["mole"]
    assert pack.names_of("melanoma") == ["melanoma"]
    for wrong, message in (
        ({"templates": ["a photo"]}, "exactly once"),
        ({"presence_templates": [("{}", "{}")]}, "says the same twice"),
        ({"presence_templates": [("{}", "none")]}, "exactly once"),
        ({"class_names": {"a": []}}, "empty name"),
        ({"class_names": {"a b": ["x"], "A_b": ["y"]}}, "differ in case or spacing only"),
        ({"template": ["{}"]}, "did you mean 'templates'"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            PromptPack(**wrong)
