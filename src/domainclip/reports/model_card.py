"""The README.md of a saved model: what it is, what it scored, how to load it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from huggingface_hub import EvalResult, ModelCardData

from domainclip.reports.plain_use import PlainUse
from domainclip.reports.render import render
from domainclip.reports.schema import RunReport
from domainclip.reports.sections import shown_metrics
from domainclip.reports.text import title

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def using_code(folder: str, classes: bool) -> str:
    """Python that classifies an image with a saved model, or compares it with captions where there are no classes.

    Args:
        folder: The model's folder.
        classes: Whether the model knows its classes.

    Returns:
        Three lines.
    """
    use = 'predict("image.jpg")' if classes else 'similarity("image.jpg", ["one caption", "another"])'
    return f"""\
from domainclip import ModelSession
model = ModelSession.from_pretrained({_quoted(folder)})
print(model.{use})"""


def loading_code(folder: str, text_padding: str | None = None, own_code: bool = False) -> str:
    """Python that loads a saved model with ``transformers`` and scores one image against two texts.

    Args:
        folder: The model's folder.
        text_padding: ``"max_length"`` for models whose text tower was trained at a fixed length (SigLIP).
        own_code: Whether the model's class stands in the folder itself, which ``transformers`` runs only when told to.

    Returns:
        A program.
    """
    trust = ", trust_remote_code=True" if own_code else ""
    padding = '"max_length"' if text_padding == "max_length" else "True"
    return f"""\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = {_quoted(folder)}
model = AutoModel.from_pretrained(folder{trust}).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
texts = tokenizer(["one caption", "another"], padding={padding}, truncation=True, return_tensors="pt")
images = processor(images=Image.open("image.jpg").convert("RGB"), return_tensors="pt")
print(model(**texts, **images).logits_per_image.softmax(dim=-1))
"""


def _quoted(text: str) -> str:
    """A string of Python that holds no tag, wherever a page puts it."""
    return repr(text).replace("<", "\\x3c")


def model_card(report: RunReport, plain: PlainUse | None = None) -> str:
    """A model card in Markdown with YAML front matter, as the Hugging Face Hub reads it.

    The licence is said to be unknown, because it follows from the base model's and the data's, which nobody but the
    user can know. A base model that is a folder is named in the text alone, without its path: the Hub takes only its
    own names, and a path tells strangers about a private machine.

    Args:
        report: The run's report.
        plain: What becomes of the model without this package, where that was measured.

    Returns:
        The text of ``README.md``.
    """
    base, domain = report.base_model or "", report.domain or ""
    results = shown_metrics(report.before, report.after)
    is_hub_name = bool(_HUB_NAME.fullmatch(base))
    name = base if is_hub_name else PurePosixPath(base.replace("\\", "/")).name
    scores = [
        EvalResult(
            task_type="image-classification",
            dataset_type="own",
            dataset_name="test split",
            metric_type=metric,
            metric_name=title(metric),
            metric_value=value,
        )
        for metric in results
        if (value := report.after.get(metric)) is not None
    ]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="zero-shot-image-classification",
        license="unknown",
        tags=["clip", "vision-language", "contrastive", "domainclip", *([domain] if domain else [])],
        base_model=base if is_hub_name else None,
        model_name=name or "model",
        eval_results=scores or None,
    )
    page = render(
        "model_card.md.j2",
        report=report,
        plain=plain,
        name=name,
        results=results,
        code=loading_code(".", report.text_padding, report.own_code),
    )
    return f"---\n{front.to_yaml()}\n---\n\n{page}"
