"""What a domain does to captions: spelling, abbreviations, length, negation, other ways of saying them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from domainclip.config.glossary import Glossary, load_glossary, shipped_glossaries
from domainclip.config.text_preprocessing import TextPreprocessing
from domainclip.data.captions.abbreviations import AbbreviationExpander
from domainclip.data.captions.negation import NegationCues
from domainclip.data.captions.normalise import normalise_characters, normalise_units
from domainclip.data.captions.pipeline import CaptionPipeline
from domainclip.errors import ConfigurationError


def write(folder: Path, text: str) -> Path:
    path = folder / "glossary.yaml"
    path.write_text(text, encoding="utf-8")
    return path


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
                after = "5" if "number" in sense.only_before else next(iter(sense.only_before), "here")
                assert written.lower() in expand(f"seen {short} {after} {' '.join(sense.context)} now").lower(), short
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
        ("synonyms:\n  - [crack, 5]\n", r"line 2"),
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
        # Blank entries
        ("abbreviations:\n  MR: magnetic\n  CT: ' '\n", r"empty expansion.*line 3"),
        ("abbreviations:\n  CT:\n    - expansion: ''\n", r"empty expansion.*line 3"),
        ("abbreviations:\n  MR: magnetic\n  ' ': computed\n", r"is empty.*line 3"),
        ("abbreviations:\n  CT: a\n  ' CT ': b\n", r"'CT' stands twice.*line 3"),
        ("abbreviations:\n  CT:\n    - expansion: a\n      plural: ' '\n", r"empty expansion or plural.*line 4"),
        ("abbreviations:\n  CT:\n    - expansion: a\n      context:\n        - b\n        - ''\n", r"is empty.*line 6"),
        ("abbreviations:\n  CT:\n    - expansion: a\n      not_after: [' ']\n", r"is empty.*line 4"),
        ("negations:\n  - lacks\n  - ''\n", r"One of the negations is empty.*line 3"),
        ("negation_pairs:\n  - [fracture, '']\n", r"must be a statement and its negation.*line 2"),
        ("synonyms:\n  - [crack, ' ']\n", r"none of them empty.*line 2"),
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
    assert CaptionPipeline(again)("an XY of NO") == "an ex why of nitric oxide"


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
    # "NO" is nitric oxide in one domain and a denial in another; the word itself is never touched.
    expand = AbbreviationExpander(Glossary(abbreviations={"NO": "nitric oxide"}))
    assert expand("no effusion, No effusion, NO in air") == "no effusion, No effusion, nitric oxide in air"


def test_expanding_real_notes_keeps_everything_else(real_notes: list[str]) -> None:
    glossary = load_glossary("medical")
    expand, cues = AbbreviationExpander(glossary), NegationCues(glossary.negations)
    changed = 0
    for caption in real_notes:
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
