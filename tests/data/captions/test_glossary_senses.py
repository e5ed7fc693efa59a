"""Where an abbreviation of a glossary is meant, and where the same letters say something else."""

from __future__ import annotations

import pytest

from domainclip.config.glossary import Glossary, load_glossary
from domainclip.config.text_preprocessing import TextPreprocessing
from domainclip.data.captions.abbreviations import AbbreviationExpander
from domainclip.data.captions.pipeline import CaptionPipeline


def expand(glossary: str, text: str) -> str:
    return AbbreviationExpander(load_glossary(glossary))(text)


@pytest.mark.parametrize(
    ("glossary", "text"),
    [
        ("scientific", "rich in Ca."),
        ("scientific", "Davis, CA."),
        ("scientific", "water ca. and more"),
        ("scientific", "the fruit of a common Fig."),
        ("scientific", "an emulsion, w/o/w or w/o emulsion"),
        ("scientific", "quartz, sp. gr. 2.65"),
        ("scientific", "FISH at the market"),
        ("medical", "DX chest image"),
        ("medical", "a note, Dx unclear"),
        ("medical", "as Dx."),
        ("medical", "CVA"),
        ("medical", "history of stroke with CVA tenderness"),  # two senses fit
        ("medical", "dx'd with flu"),
        ("medical", "ſ/p operation"),
        ("industrial", "10 AM on layer 3"),
        ("industrial", "at 10:30 AM, layer 3"),
        ("industrial", "pipe ID 4432"),
        ("industrial", "pipe ID: no. 4432"),
        ("industrial", "pipe ID tag"),
        ("industrial", "image of CAM 2"),
        ("industrial", "a flow of 5 SLM"),
        ("industrial", "the LID of a tin"),
        ("industrial", "dıa. 5 mm"),
    ],
)
def test_what_says_something_else_is_left_alone(glossary: str, text: str) -> None:
    assert expand(glossary, text) == text


@pytest.mark.parametrize(
    ("glossary", "text", "expected"),
    [
        ("scientific", "ca. 5 mm, ca. ~5 mm", "Approximately 5 mm, approximately ~5 mm"),
        ("scientific", "Pollen. Ca. 5 mm.", "Pollen. Approximately 5 mm."),
        ("scientific", "see Fig. 3", "see figure 3"),
        ("scientific", "an AFM image", "an atomic force microscopy image"),
        ("scientific", "AFM spins", "Antiferromagnetic spins"),
        ("medical", "Dx: flu. S/p stent.", "Diagnosis: flu. Status post stent."),
        ("medical", "Impression: Dx open", "Impression: Diagnosis open"),
        ("medical", "flank pain, CVA tenderness", "flank pain, costovertebral angle tenderness"),
        ("medical", "a CVA with aphasia", "a cerebrovascular accident with aphasia"),
        ("medical", "a CT AP of the pelvis", "a computed tomography AP of the pelvis"),
        ("industrial", "316L AM layer", "316L additive manufacturing layer"),
        ("industrial", "a pipe ID of 50 mm", "a pipe inner diameter of 50 mm"),
    ],
)
def test_what_is_meant_is_written_out(glossary: str, text: str, expected: str) -> None:
    assert expand(glossary, text) == expected
    assert expand(glossary, expected) == expected


def test_neighbours_count_in_both_forms() -> None:
    senses = [{"expansion": "of steel", "only_before": ["PL"], "not_after": ["CT", "two words"]}]
    write = AbbreviationExpander(Glossary(abbreviations={"CT": "a scan", "PL": "plate", "S": senses}))
    assert write("the S plate, S PL, S") == "the of steel plate, of steel plate, S"
    assert write("CT S plate, two words S plate") == "A scan S plate, two words S plate"
    assert write("CT, S plate") == "A scan, of steel plate"  # a comma parts them


def test_a_conditional_abbreviation_is_no_part_of_an_expansion() -> None:
    glossary = Glossary(abbreviations={"ID": [{"expansion": "inner", "not_before": ["number"]}], "TX": "tube ID 5"})
    assert AbbreviationExpander(glossary)("TX") == "Tube ID 5"


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("entry", ["µm", "μm"])  # micro sign, Greek mu
def test_micro_signs_are_one_letter(normalise: bool, entry: str) -> None:
    glossary = Glossary(abbreviations={entry: "micrometre"})
    pipeline = CaptionPipeline(TextPreprocessing(normalise=normalise, glossary=glossary, expand_abbreviations=True))
    assert pipeline("5 µm and 5 μm") == "5 micrometre and 5 micrometre"


def test_an_abbreviation_in_capitals_keeps_its_own_meaning() -> None:
    write = AbbreviationExpander(Glossary(abbreviations={"ct": "count", "CT": "scan", "Ct": "cycle threshold"}))
    assert write("a ct of CT, Ct 5") == "a count of scan, cycle threshold 5"
    assert write("Ct 5") == "Cycle threshold 5"


def test_white_space_around_entries_is_taken_off() -> None:
    glossary = Glossary(abbreviations={" CT ": " scan "}, synonyms=[[" a", "b "]], negations=["lacks "])
    assert AbbreviationExpander(glossary)("a CT") == "a scan"
    assert (glossary.synonyms, glossary.negations) == ([["a", "b"]], ["lacks"])


def test_hardness_indentations_are_no_dents() -> None:
    assert not any({"dent", "indentation"} <= set(group) for group in load_glossary("industrial").synonyms)
