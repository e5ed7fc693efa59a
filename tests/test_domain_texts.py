"""What a domain does to captions: spelling, abbreviations, length, negation, other ways of saying them."""

from __future__ import annotations

import csv
import random
import re
from pathlib import Path

import pytest
import yaml

from domainclip.config.domain_texts import PromptPack, TextPreprocessing
from domainclip.config.glossary import Glossary, load_glossary, shipped_glossaries
from domainclip.data.domain_text import CaptionChain
from domainclip.data.domain_text.abbreviations import AbbreviationExpander
from domainclip.data.domain_text.caption_views import SectionDropout, SynonymReplacer
from domainclip.data.domain_text.negation import NegationCues
from domainclip.data.domain_text.normalise import normalise_characters, normalise_units
from domainclip.data.domain_text.sentences import split_sentences
from domainclip.data.domain_text.truncation import SentenceTruncator
from domainclip.errors import ConfigurationError

EVERYTHING = TextPreprocessing(
    normalise=True, normalise_units=True, glossary="medical", expand_abbreviations=True, truncation="sentences",
    synonym_share=0.5, section_dropout=0.4,
)  # fmt: skip


def words_as_tokens(texts: list[str]) -> list[int]:
    """A tokenizer that can be counted by hand: a token a word, one for the start and one for the end."""
    return [len(text.split()) + 2 for text in texts]


def write(folder: Path, text: str) -> Path:
    path = folder / "glossary.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def captions(shared_data: Path) -> list[str]:
    rows: list[str] = []
    for split in ("train", "test"):
        with open(shared_data / "med_covid_cxr" / f"{split}.csv", encoding="utf-8", newline="") as handle:
            rows += [row["caption"] for row in csv.DictReader(handle)]
    return rows


# --- glossaries ---


@pytest.mark.parametrize("name", ["medical", "industrial", "scientific"])
def test_shipped_glossaries_are_rich_and_sound(name: str) -> None:
    assert name in shipped_glossaries()
    glossary = load_glossary(name)
    assert len(glossary.abbreviations) >= 40
    assert len(glossary.abbreviations) + len(glossary.synonyms) + len(glossary.negation_pairs) >= 100
    expand = AbbreviationExpander(glossary)
    for short, senses in glossary.abbreviations.items():
        for sense in senses:
            written = glossary.expansion_of(sense)
            assert short not in re.findall(r"[\w/&.-]+", written), short
            # Wherever its context is named, an abbreviation of one sense is written out.
            if len(senses) == 1:
                assert written.lower() in expand(f"seen {short} here {' '.join(sense.context)} now").lower(), short
    # A synonym may not turn a statement into its negation. These deny in every one of their forms:
    known = ("defect-free", "non-destructive testing")
    cues = NegationCues(glossary.negations)
    for group in glossary.synonyms:
        assert group[0] in known or not any(cues.negates(term) for term in group), group


def test_a_cycle_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "abbreviations:\n  MRI: magnetic resonance imaging\n  CXR: the CX\n  CX: a CXR\n")
    with pytest.raises(ConfigurationError, match=r"CXR → CX → CXR.*glossary\.yaml line 3"):
        load_glossary(path)
    with pytest.raises(ConfigurationError, match="CT → CT"):
        Glossary(abbreviations={"CT": "CT scan"})
    with pytest.raises(ConfigurationError, match="A → B → C → A"):  # through one of several senses
        Glossary(
            abbreviations={
                "A": "of B",
                "B": [{"expansion": "C", "context": ["x"]}, {"expansion": "d", "context": ["y"]}],
                "C": "my A",
            }
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "abreviations:\n  CT: computed tomography\n",
            r"Unknown key 'abreviations': did you mean 'abbreviations'.*line 1",
        ),
        ("synonyms:\n  - [crack, fissure]\n  - [dent]\n", r"at least two terms.*line 3"),
        ("synonyms:\n  - [crack, fissure]\n  - [rift, Crack]\n", r"'Crack' stands in two synonym groups.*line 3"),
        ("synonyms:\n  - [crack, no]\n", r"line 2"),  # YAML reads no as false
        (
            "abbreviations:\n  CT: computed tomography\n  PA:\n    - expansion: posteroanterior\n"
            "    - {expansion: pulmonary artery, context: [catheter]}\n",
            r"'PA' has 2 senses, and 'posteroanterior' has no context.*line 3",
        ),
        (
            "abbreviations:\n  PA:\n    - expansion: posteroanterior\n      contexts: [chest]\n",
            r"Unknown key 'contexts': did you mean 'context'.*line 4",
        ),
        ("abbreviations:\n  CT: a\n  CT: b\n", r"line 3: 'CT' stands twice \(first on line 2\)"),
        ("abbreviations: [CT\n", r"line \d: not valid YAML"),
        ("- CT\n", "a list of 'key: value' lines"),
        ("negation_pairs:\n  - [fracture, fracture]\n", r"must be a statement and its negation.*line 2"),
    ],
)
def test_a_wrong_glossary_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_glossary(write(tmp_path, text))


def test_a_glossary_that_is_not_there() -> None:
    with pytest.raises(ConfigurationError, match=r"Unknown glossary 'medicine'\. Did you mean 'medical'"):
        load_glossary("medicine")
    with pytest.raises(ConfigurationError, match=r"Glossary nowhere\.yaml does not exist"):
        load_glossary("nowhere.yaml")
    with pytest.raises(ConfigurationError, match="expand_abbreviations reads a glossary"):
        TextPreprocessing(expand_abbreviations=True)


def test_settings_hold_their_glossary_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "abbreviations: {XY: ex why, NO: nitric oxide}\n")
    settings = TextPreprocessing(glossary="glossary.yaml", expand_abbreviations=True).self_contained(tmp_path)
    path.unlink()
    again = TextPreprocessing(**yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json"))))
    assert CaptionChain(again)("an XY of NO") == "an ex why of nitric oxide"


# --- spelling ---


def test_characters_get_one_spelling_and_keep_their_meaning() -> None:
    assert normalise_characters("“air‑space”  con\u00adsolidation – ﬁne\u200b") == '"air-space" consolidation - fine'
    assert normalise_characters("ＣＴ scan") == "CT scan"
    kept = "10³ cells/m², 3 ± 0.5 °C, α-quartz, café, 漢字"
    assert normalise_characters(kept) == kept
    assert normalise_characters("line one\nline two") == "line one line two"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a 5mm nodule", "a 5 mm nodule"),
        ("a 2.3-cm lesion", "a 2.3 cm lesion"),
        ("3 um thick, 20 ml", "3 µm thick, 20 mL"),
        ("40 percent of it, 12 %", "40% of it, 12%"),
        ("3x4 cm", "3 x 4 cm"),
        ("37 deg C", "37 °C"),
        ("106.3mg/l", "106.3 mg/L"),
        ("the 5th of 5 patients, T2, B12mm3, 10 cm²", "the 5th of 5 patients, T2, B12mm3, 10 cm²"),
        ("a 50-year-old", "a 50-year-old"),
    ],
)
def test_units_get_one_spelling(given: str, expected: str) -> None:
    assert normalise_units(given) == expected
    assert normalise_units(expected) == expected
    assert re.findall(r"\d+", given) == re.findall(r"\d+", expected)


# --- abbreviations ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a CXR of a 50 y/o man", "a chest X-ray of a 50 year-old man"),
        ("two CXRs, bilateral GGOs", "two chest X-rays, bilateral ground-glass opacities"),
        ("an HRCT", "a high-resolution computed tomography"),  # the expansion's own abbreviation, and the article
        ("a ECG", "an electrocardiogram"),
        ("cxr or Cxr", "cxr or Cxr"),  # capitals match capitals only
        ("an SpO2 of 90", "an oxygen saturation of 90"),
        ("SARS and SARS-CoV-2", "SARS and severe acute respiratory syndrome coronavirus 2"),
        ("XCT, CTX, CT2, PET-CT4", "XCT, CTX, CT2, PET-CT4"),  # on word boundaries
        ("a CT-guided biopsy (CT)", "a computed tomography-guided biopsy (computed tomography)"),
        ("RT-PCR", "Reverse transcription polymerase chain reaction"),
        ("the PA view of the chest", "the posteroanterior view of the chest"),
        ("the PA pressure by catheter", "the pulmonary artery pressure by catheter"),
        ("the PA", "the PA"),  # no context
        ("the PA catheter on a chest X-ray", "the PA catheter on a chest X-ray"),  # two senses fit
        ("acute respiratory distress syndrome (ARDS)", "acute respiratory distress syndrome"),
        ("ground glass opacities (GGOs) seen", "ground glass opacities seen"),
        ("an ARDS (acute respiratory distress syndrome)", "an acute respiratory distress syndrome"),
        ("C-reactive protein (CRP, 7 mg/L)", "C-reactive protein (CRP, 7 mg/L)"),
        ("No effusion. CT was normal.", "No effusion. Computed tomography was normal."),
        ("man w/o fever, w/ cough", "man without fever, with cough"),
        ("CHEST CT SHOWS ARDS", "CHEST CT SHOWS ARDS"),  # all in capitals: nothing tells abbreviations from words
    ],
)
def test_abbreviations_are_written_out_where_they_are_certain(given: str, expected: str) -> None:
    expand = AbbreviationExpander(load_glossary("medical"))
    assert expand(given) == expected
    assert expand(expected) == expected


def test_no_abbreviation_is_a_negation() -> None:
    # "NO" is nitric oxide in one field and a denial in another; the word itself is never touched.
    expand = AbbreviationExpander(Glossary(abbreviations={"NO": "nitric oxide"}))
    assert expand("no effusion, No effusion, NO in air") == "no effusion, No effusion, nitric oxide in air"


def test_expanding_real_notes_keeps_everything_else(captions: list[str]) -> None:
    glossary = load_glossary("medical")
    expand, cues = AbbreviationExpander(glossary), NegationCues(glossary.negations)
    changed = 0
    for caption in captions:
        written = expand(caption)
        changed += written != caption
        assert expand(written) == written
        assert len(re.findall(r"\b(?:no|not|without)\b", written, re.I)) >= len(
            re.findall(r"\b(?:no|not|without)\b", caption, re.I)
        )
        assert cues.negates(written) == cues.negates(caption)
        # Words that no abbreviation has anything to do with stay, in their order.
        lower = re.findall(r"\b[a-z]{4,}\b", caption)
        rest = iter(re.findall(r"[A-Za-z]{4,}", written))
        missing = [word for word in lower if not any(word == other.lower() for other in rest)]
        assert not missing, (caption, written, missing)
    assert changed > 100  # "CT" alone is in about a quarter of them


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
        ("第一句。第二句。", ["第一句。", "第二句。"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_whole_sentences_are_kept_while_they_fit() -> None:
    text = "One two three. Four five six. Seven eight nine."
    for limit, kept in ((11, text), (10, "One two three. Four five six."), (8, "One two three. Four five six."),
                        (7, "One two three.")):  # fmt: skip
        assert SentenceTruncator(words_as_tokens, limit).cut(text) == kept


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
    ]
    for statement in statements:
        for limit in range(5, words_as_tokens([statement])[0]):
            cut = SentenceTruncator(words_as_tokens, limit).cut(statement)
            assert words_as_tokens([cut])[0] <= limit
            if not cues.negates(cut):  # then nothing that is denied may be named
                assert not re.search(r"effusion|oedema|consolidation|metastasis|cough|fever", cut, re.I), (limit, cut)


def test_real_notes_are_cut_at_sentences(captions: list[str]) -> None:
    chain = CaptionChain(EVERYTHING, words_as_tokens, 40)
    report = chain.count_cut(captions)
    long = [caption for caption in captions if words_as_tokens([chain.rewritten(caption)])[0] > 40]
    assert report is not None and len(long) > 100
    assert (report.cut, report.captions) == (len(long), len(captions))
    assert f"{len(long)} of {len(captions)} captions" in str(report)
    at_sentences = 0
    for caption in captions:
        whole, cut = chain.rewritten(caption), chain(caption)
        assert words_as_tokens([cut])[0] <= 40
        assert chain(cut) == cut  # once more changes nothing
        if caption not in long:
            assert cut == whole
        elif (sentences := split_sentences(whole)) and words_as_tokens(sentences[:1])[0] <= 40:
            kept = len(split_sentences(cut))
            assert cut == " ".join(sentences[:kept])
            assert words_as_tokens([" ".join(sentences[: kept + 1])])[0] > 40  # as many as fit
            at_sentences += 1
    assert at_sentences > 100


# --- negation and views ---


@pytest.mark.parametrize(
    "text",
    ["no effusion", "No. There is none", "without fever", "cannot be seen", "isn't there", "non-productive cough",
     "effusion is absent", "negative for COVID", "denies pain", "ruled out"],
)  # fmt: skip
def test_negations_are_seen(text: str) -> None:
    assert NegationCues().negates(text)


@pytest.mark.parametrize(
    "text", ["sample no. 5", "a normal note", "nodule", "a nonagenarian", "quad flat no-lead package"]
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


def test_synonyms_stay_in_their_group(captions: list[str]) -> None:
    groups = load_glossary("medical").synonyms
    replace = SynonymReplacer(groups)
    canonical = sorted(((term, group[0]) for group in groups for term in group), key=lambda pair: -len(pair[0]))
    pattern = re.compile(r"(?<![\w-])(?:" + "|".join(re.escape(t) for t, _ in canonical) + r")(?![\w-])", re.I)
    known = {term.lower(): first.lower() for term, first in canonical}

    def meaning(text: str) -> str:
        """Every term as the first of its group, articles aside."""
        return re.sub(r"\ban\b", "a", pattern.sub(lambda found: known[found[0].lower()], text.lower()))

    changed = 0
    for place, caption in enumerate(captions):
        other = replace(caption, 1.0, random.Random(place))
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
    assert drop("No effusion. No mass.", 0.9, random.Random(0)) == "No effusion. No mass."
    assert drop("One sentence.", 0.9, random.Random(0)) == "One sentence."


def test_views_of_real_notes(captions: list[str]) -> None:
    chain = CaptionChain(EVERYTHING, words_as_tokens, 60)
    plain = CaptionChain(EVERYTHING.model_copy(update={"truncation": "tokens"}))
    several = 0
    for caption in captions[::4]:
        views = chain.views(caption, seed=7)
        assert views == CaptionChain(EVERYTHING, words_as_tokens, 60).views(caption, seed=7)
        assert all(words_as_tokens([view])[0] <= 60 for view in views)
        several += len(set(views)) > 1
        denials = [s for s in split_sentences(plain.rewritten(caption)) if plain.cues.negates(s)]
        for view in plain.views(caption, seed=7):
            assert len([s for s in split_sentences(view) if plain.cues.negates(s)]) == len(denials), (caption, view)
    assert several > 80
    other = [chain.views(caption, seed=8) for caption in captions[:40]]
    assert other != [chain.views(caption, seed=7) for caption in captions[:40]]


def test_everything_off_changes_nothing_but_white_space(captions: list[str]) -> None:
    chain = CaptionChain(TextPreprocessing(), words_as_tokens, 20)
    assert not chain.has_views
    for caption in captions:
        assert chain(caption) == " ".join(caption.split())


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
