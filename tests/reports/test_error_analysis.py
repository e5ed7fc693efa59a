"""The error analysis: which cases it chooses, against plain loops, and a page that is safe, whole and
self-contained."""

from __future__ import annotations

import base64
import io
import json
import re
import zlib
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError
from domainclip.evaluation.error_analysis import Case, ErrorAnalysis, Guess, Section, build_error_analysis
from domainclip.evaluation.evaluators import DomainEvaluator
from domainclip.metrics.significance import wilson_interval
from domainclip.pipelines.run_folder import RunFolder
from domainclip.reports.error_analysis_page import error_analysis_html, write_error_analysis
from report_cases import pages

VOID = {"meta", "img", "br"}


class Stub:
    """Any name to a fixed random direction; a class's images lean towards its name, more or less."""

    def __init__(self, lean: float = 0.2) -> None:
        self.lean = lean

    def one(self, name: str) -> torch.Tensor:
        seed = zlib.crc32(name.encode())
        return F.normalize(torch.randn(24, generator=torch.Generator().manual_seed(seed)), dim=0)

    def encode_images(self, paths: list[Path]) -> torch.Tensor:
        rows = [self.one(str(path)) + self.lean * self.one(path.stem.split("_")[0]) for path in paths]
        return F.normalize(torch.stack(rows), dim=1)

    def encode_texts(self, texts: list[str]) -> torch.Tensor:
        return torch.stack([self.one(text.removeprefix("about ").split(",")[0]) for text in texts])


def probabilities(cosines: torch.Tensor) -> torch.Tensor:
    return torch.softmax(cosines.double() / 0.1, dim=1)


def rows(labels: tuple[str, ...] = ("ant", "bee", "cat"), each: int = 30) -> list[ImageTextPair]:
    return [
        ImageTextPair(f"/data/{label}_{index}.png", f"about {label}, {index}", label)
        for label in labels
        for index in range(each)
    ]


def analysis_of(pairs: list[ImageTextPair], embed: Stub, **options: int) -> ErrorAnalysis:
    return build_error_analysis("a title", pairs, DomainEvaluator(pairs, ["{}"]), embed, probabilities, **options)


def of(analysis: ErrorAnalysis, title: str, what: str = "class") -> Section:
    return next(section for section in analysis.sections if section.title == title and section.of == what)


def test_the_sections_are_what_plain_loops_choose() -> None:
    pairs, embed = rows(), Stub()
    analysis = analysis_of(pairs, embed, per_section=5)
    names = ["ant", "bee", "cat"]
    chances, cosines = {}, {}
    for pair in pairs:
        image = embed.encode_images([pair.image_path])[0]
        cosines[pair.image_path] = [float(image @ embed.one(name)) for name in names]
        chances[pair.image_path] = torch.softmax(torch.tensor(cosines[pair.image_path]).double() / 0.1, 0).tolist()
    chosen = {path: names[int(np.argmax(values))] for path, values in cosines.items()}
    wrong = [pair for pair in pairs if chosen[pair.image_path] != pair.label]
    right = [pair for pair in pairs if chosen[pair.image_path] == pair.label]
    assert len(wrong) > 10 and len(right) > 10
    surest = sorted(wrong, key=lambda pair: -max(chances[pair.image_path]))
    errors = of(analysis, "Most confident errors")
    assert [case.image_path for case in errors.cases] == [pair.image_path for pair in surest[:5]]
    assert errors.total == len(wrong)
    for case in errors.cases:
        assert case.predicted == chosen[case.image_path] and not case.right
        assert case.confidence == pytest.approx(max(chances[case.image_path]), abs=1e-6)
        assert [guess.score for guess in case.guesses] == pytest.approx(
            sorted(chances[case.image_path])[::-1], abs=1e-6
        )
    others = of(analysis, "Other misses")
    assert others.total == len(wrong) - 5
    assert {case.image_path for case in others.cases} <= {pair.image_path for pair in surest[5:]}
    hits = of(analysis, "Hits")
    assert hits.total == len(right)
    # One of each class before the second of any, and of each class its surest.
    assert len({case.label for case in hits.cases[:3]}) == 3
    for case in hits.cases[:3]:
        own = [pair for pair in right if pair.label == case.label]
        assert case.image_path == max(own, key=lambda pair: max(chances[pair.image_path])).image_path
    doubtful = of(analysis, "Least confident hits").cases
    lowest = sorted(right, key=lambda pair: max(chances[pair.image_path]))[:5]
    assert [case.image_path for case in doubtful] == [pair.image_path for pair in lowest]


def test_figures_are_those_of_the_evaluation() -> None:
    pairs, embed = rows(), Stub()
    metrics = DomainEvaluator(pairs, ["{}"]).evaluate(embed).metrics
    analysis = analysis_of(pairs, embed)
    figures = dict(analysis.figures)
    low, high = wilson_interval(round(metrics["acc1"] * 90), 90).ends
    assert figures[f"accuracy (95 % interval {low:.1%} to {high:.1%})"] == f"{metrics['acc1']:.1%}"
    assert figures["own caption first among 90 (R@1)"] == f"{metrics['i2t_R@1']:.1%}"
    assert sum(row.right for row in analysis.classes) == round(metrics["acc1"] * len(pairs))


def test_captions_are_evaluated_by_the_ranks_of_the_evaluation() -> None:
    pairs = [ImageTextPair(pair.image_path, pair.caption) for pair in rows()]
    evaluator, embed = DomainEvaluator(pairs, ["{}"]), Stub()
    found = evaluator.evaluate(embed).details["retrieval"]
    ranks = dict(zip(found["image_paths"], found["i2t_ranks"], strict=True))
    analysis = build_error_analysis("no labels", pairs, evaluator, embed, probabilities, per_section=200)
    assert {section.of for section in analysis.sections} == {"caption"} and not analysis.classes
    assert "No classification: no row has a label" in analysis.notes
    cases = {str(case.image_path): case for section in analysis.sections for case in section.cases}
    assert {path: case.rank for path, case in cases.items()} == ranks
    errors = of(analysis, "Most confident errors", "caption").cases
    assert [case.confidence for case in errors] == sorted((case.confidence for case in errors), reverse=True)
    assert all(case.rank and case.rank > 1 and not case.guesses[0].right for case in errors[:3])


def test_classes_come_the_worst_first_with_what_they_are_taken_for() -> None:
    pairs, embed = rows(), Stub()
    analysis = analysis_of(pairs, embed)
    recalls = [row.recall for row in analysis.classes]
    assert recalls == sorted(recalls) and len(recalls) == 3
    details = DomainEvaluator(pairs, ["{}"]).evaluate(embed).details["classification"]
    for row in analysis.classes:
        reported = [p for t, p in zip(details["targets"], details["predictions"], strict=True) if t == row.label]
        assert (row.n, row.right) == (len(reported), reported.count(row.label))
        assert dict(row.taken_for) == {name: n for name, n in Counter(reported).items() if name != row.label}
        assert all(case.right for case in row.hits) and not any(case.right for case in row.misses)


def test_a_class_without_images_is_named() -> None:
    pairs = rows()
    evaluator = DomainEvaluator(pairs, ["{}"], class_names=["ant", "bee", "cat", "dodo"])
    analysis = build_error_analysis("t", pairs, evaluator, Stub(), probabilities)
    assert analysis.absent_classes == ["dodo"] and "No image here: dodo." in error_analysis_html(analysis, blank)


def test_a_collapsed_model_has_no_hits() -> None:
    class Same(Stub):
        def encode_images(self, paths: list[Path]) -> torch.Tensor:
            return torch.ones(len(paths), 2)

        def encode_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.ones(len(texts), 2)

    analysis = analysis_of(rows(each=4), Same())
    assert {section.title for section in analysis.sections} == {"Most confident errors"}
    for section in analysis.sections:
        assert section.total == 12 and not any(case.right or case.guesses[0].right for case in section.cases[:1])


def test_nothing_to_show_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one image a section"):
        analysis_of(rows(each=2), Stub(), per_section=0)


def blank(path: Path) -> np.ndarray:
    return np.full((20, 30, 3), 128, dtype=np.uint8)


class Page(HTMLParser):
    """Every tag and attribute of a page; fails on tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


NASTY = '<script>alert("x")</script> & "quoted" \'single\' </style>'


def test_everything_is_escaped() -> None:
    pairs = [
        ImageTextPair(f"/d/{NASTY.replace('/', '')}_{index}.png", f"{NASTY} {index}", f"{NASTY}{index % 2}")
        for index in range(8)
    ]
    evaluator = DomainEvaluator(pairs, ["{}"])
    analysis = build_error_analysis(NASTY, pairs, evaluator, Stub(), probabilities)
    analysis.notes.append(NASTY)
    text = error_analysis_html(analysis, blank)
    assert "<script" not in text
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "header",
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "b",
        "nav",
        "div",
        "a",
        "section",
        "article",
        "img",
        "i",
        "span",
        "details",
        "summary",
        "u",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "figure",
        "figcaption",
        "br",
    }
    assert NASTY in page.texts  # and yet it is there to read


def test_nothing_is_fetched_and_every_link_leads_somewhere() -> None:
    text = error_analysis_html(analysis_of(rows(), Stub()), blank)
    page = Page(text)
    anchors = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    for tag, attrs in page.tags:
        assert not any(name.startswith("on") for name in attrs)
        if "src" in attrs:
            assert tag == "img" and (attrs["src"] or "").startswith("data:image/jpeg;base64,") and attrs["alt"]
        if "href" in attrs:
            assert tag == "a" and (attrs["href"] or "").lstrip("#") in anchors
    assert "url(" not in text and "@import" not in text
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and "default-src 'none'" in policy and "img-src data:" in policy
    assert "prefers-color-scheme: dark" in text


def images_in(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(encoded))) for encoded in found]


def one_case(path: Path, captions: tuple[str, ...] = ("a caption",)) -> ErrorAnalysis:
    case = Case(path, captions, "a", (Guess("a", 0.9, True), Guess("b", 0.1, False)), True, 0.9, "a")
    return ErrorAnalysis("one", sections=[Section("Hits", "note", "class", (case,), 1)])


def test_images_are_upright_and_small(tmp_path: Path) -> None:
    image = Image.new("RGB", (1200, 600), (200, 30, 30))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side: turned by 90 degrees it is 600 wide and 1200 high
    image.save(tmp_path / "side.jpg", exif=exif)
    text = write_error_analysis(tmp_path, one_case(tmp_path / "side.jpg")).read_text(encoding="utf-8")
    (shown,) = images_in(text)
    assert shown.height == 2 * shown.width and shown.height <= 320
    assert np.abs(np.asarray(shown).mean(axis=(0, 1)) - (200, 30, 30)).max() < 5
    assert str(tmp_path) not in text  # the machine's folders are nobody's business


def test_an_image_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    text = error_analysis_html(one_case(tmp_path / "broken.png"))
    assert "broken.png: this is a text file" in text and "<img" not in text and str(tmp_path) not in text


def test_a_long_caption_is_there_in_full() -> None:
    words = [f"word{index}" for index in range(120)]
    page = Page(error_analysis_html(one_case(Path("a.png"), (" ".join(words), "second", "third", "fourth")), blank))
    read = " ".join(" ".join(page.texts).split())
    assert all(re.search(rf"\b{word}\b", read) for word in words)
    assert sum(tag == "details" for tag, _ in page.tags) == 1
    assert "and 2 more captions" in read


def test_no_probability_is_rounded_to_certainty() -> None:
    analysis = one_case(Path("a.png"))
    case = analysis.sections[0].cases[0]
    sure = Case(case.image_path, case.captions, "a", (Guess("a", 0.99999, True), Guess("b", 1e-5, False)), True, 1, "a")
    analysis.sections = [Section("Hits", "", "class", (sure,), 1)]
    read = "".join(Page(error_analysis_html(analysis, blank)).texts)
    assert "> 99.9%" in read and "< 0.1%" in read and "100.0%" not in read


def test_many_classes_have_a_row_each() -> None:
    labels = tuple(f"species number {index}" for index in range(73))
    analysis = analysis_of(rows(labels, each=3), Stub(), per_section=6)
    page = Page(error_analysis_html(analysis, blank))
    assert sum(attrs.get("scope") == "row" for _, attrs in page.tags) == 73
    assert all(len(section.cases) <= 6 for section in analysis.sections)
    for case in of(analysis, "Most confident errors").cases:  # what it thought of the true class is there in any case
        assert case.label in {guess.text for guess in case.guesses} and len(case.guesses) in (3, 4)


def test_evaluate_writes_the_page(domainclip, tiny_data, tmp_path: Path) -> None:
    tree = tmp_path / "tree.yaml"
    tree.write_text("made: [brick]\nnature: [grass, sky]\n", encoding="utf-8")
    done = domainclip(
        "evaluate",
        "-r",
        "debug",
        "--data",
        tiny_data.folder,
        "--error-analysis",
        tmp_path / "new" / "page",
        "--json",
        f"class_hierarchy={tree}",
    )
    assert done.exit_code == 0, done.err
    report = json.loads(done.out)
    text = Path(report["error_analysis"]).read_text(encoding="utf-8")
    assert "<h1>tiny on tiny_data" in text and len(images_in(text)) >= 6
    assert f"{report['metrics']['acc1']:.1%}" in text
    figures = report["details"]["semantics"]["metrics"]
    assert figures["level_2_accuracy"]["value"] == pytest.approx(report["metrics"]["acc1"])
    assert figures["level_1_accuracy"]["low"] <= report["metrics"]["level_1_accuracy"]


def test_wrong_requests_are_said_before_the_work(domainclip, tiny_data, tmp_path: Path) -> None:
    common = ("evaluate", "-r", "debug", "--data", tiny_data.folder)
    (tmp_path / "file").write_text("", encoding="utf-8")
    for arguments, message in (
        (("--error-analysis", tmp_path / "file"), "cannot be written"),
        (("--error-analysis", tmp_path, "--resolutions", "32,48"), "leave --resolutions out"),
        (("class_hierarchy={made: [brick], nature: [grass]}",), "no place for 1 of the classes: 'sky'"),
        (("class_hierarchy=nowhere.yaml",), "nowhere.yaml does not exist"),
        (("document_col=paper",), "Missing 'paper' column in"),
        (("document_col=paper", "group_col=patient"), "both name what must not straddle two splits"),
        (("terminology=true",), "terminology=true reads a glossary"),
    ):
        done = domainclip(*common, *arguments)
        assert done.exit_code == 2 and message in " ".join(done.err.split()), done.err


def test_a_run_writes_the_page_beside_its_report(domainclip, tiny_data, tmp_path: Path) -> None:
    done = domainclip(
        "train",
        "-r",
        "debug",
        "--data",
        tiny_data.folder,
        "--output",
        tmp_path / "run",
        "error_analysis=true",
        "max_steps=2",
        "class_hierarchy={made: [brick], nature: [grass, sky]}",
    )
    assert done.exit_code == 0, done.err
    report = pages(tmp_path / "run")
    assert "[single errors, with images](error_analysis.html)" in report
    assert "## Documents, near misses and terminology" in report and "right at level 1 of the class hierarchy" in report
    assert "after fine-tuning, test split</h1>" in (tmp_path / "run" / "error_analysis.html").read_text(
        encoding="utf-8"
    )
    # Evaluated by itself, the page names the run, not its folder "model".
    done = domainclip(
        "evaluate", "-m", tmp_path / "run" / "model", "-d", tiny_data.folder, "--error-analysis", tmp_path
    )
    assert done.exit_code == 0, done.err
    assert "<h1>run on " in (tmp_path / "error_analysis.html").read_text(encoding="utf-8")
    RunFolder(tmp_path / "run").begin()
    RunFolder(tmp_path / "run").clear()  # as --overwrite does
    assert not (tmp_path / "run" / "error_analysis.html").exists()
