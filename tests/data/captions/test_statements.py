"""Captions that state the same thing, and captions that only look as if they did."""

from __future__ import annotations

import pytest

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.captions.statements import statement_key
from domainclip.data.dataset import CLIPDataset
from domainclip.models import make_tiny_clip


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Left lung opacity.", "left lung opacity"),
        ("The image shows left lung opacity", "There is a left lung opacity"),
        ("Pneumonia, no effusion.", "no effusion; pneumonia"),
        ("cardiomegaly and oedema", "Oedema. Cardiomegaly."),
        ("nodule of 3.5 mm", "A nodule of 3.5 mm."),
    ],
)
def test_the_same_statement(one: str, other: str) -> None:
    assert statement_key(one) == statement_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("pneumonia", "no pneumonia"),
        ("effusion without pneumonia", "pneumonia without effusion"),
        ("opacity left greater than right", "opacity right greater than left"),
        ("nodule of 3 mm", "nodule of 5 mm"),
        ("nodule of 3.5 mm", "nodule of 35 mm"),
        ("nodule in the left lung", "nodule above the left lung"),
        ("no effusion or pneumonia", "no effusion, pneumonia"),
        ("x-ray of a hand", "ray of a hand"),
    ],
)
def test_other_statements(one: str, other: str) -> None:
    assert statement_key(one) != statement_key(other)


def test_nothing_but_fillers_is_a_caption_too() -> None:
    assert statement_key("The image") == "the image"
    assert statement_key("The image") != statement_key("a photo")


def test_rows_of_one_statement_are_positives_when_asked_for(tiny_data) -> None:
    pairs = tiny_data.pairs()[:3]
    rows = [
        (pairs[0].image_path, "No effusion."),
        (pairs[1].image_path, "no effusion"),
        (pairs[2].image_path, "Effusion."),
    ]
    processor = make_tiny_clip().processor
    by_statement = CLIPDataset(rows, processor, CLIPFinetuningConfig(positives="statement", num_workers=0))
    assert by_statement.group_ids.tolist() == [0, 0, 1]
    by_caption = CLIPDataset(rows, processor, CLIPFinetuningConfig(positives="caption", num_workers=0))
    assert by_caption.group_ids.tolist() == [0, 1, 2]
