"""The README.md of a saved model: what it is, what it scored, how to load it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from domainclip.evaluation.comparison import as_result, compared_metrics, empty_recalls
from domainclip.metrics.metric import METRICS
from domainclip.reports.markdown_table import plain, table

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def loading_code(folder: str, text_padding: str | None = None, own_code: bool = False) -> str:
    """Python that loads a saved model with ``transformers`` and scores one image against two texts.

    ``text_padding`` is ``"max_length"`` for models whose text tower was trained at a fixed length (SigLIP).
    ``own_code``: the model's class stands in the folder itself, and ``transformers`` runs it only when told to.
    """
    trust = ", trust_remote_code=True" if own_code else ""
    padding = '"max_length"' if text_padding in ("max_length", "fixed") else "True"
    return f"""\
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

folder = {folder!r}
model = AutoModel.from_pretrained(folder{trust}).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
processor = AutoImageProcessor.from_pretrained(folder)
texts = tokenizer(["one caption", "another"], padding={padding}, truncation=True, return_tensors="pt")
images = processor(images=Image.open("image.jpg").convert("RGB"), return_tensors="pt")
print(model(**texts, **images).logits_per_image.softmax(dim=-1))
"""


def model_card(run: Mapping[str, Any]) -> str:
    """A model card in Markdown with YAML front matter, as the Hugging Face Hub reads it.

    ``run`` has the keys of ``report.write_report``. The licence is said to be unknown, because it follows
    from the base model's and the data's, which nobody but the user can know. A base model that is a folder
    is named in the text alone, without its path: the Hub takes only its own names, and a path tells strangers
    about a private machine.
    """
    base, domain = str(run.get("base_model") or ""), str(run.get("domain") or "")
    is_hub_name = bool(_HUB_NAME.fullmatch(base))
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-image-classification",
        "license": "unknown",
        "tags": ["clip", "vision-language", "contrastive", "domainclip", *([domain] if domain else [])],
    }
    if is_hub_name:
        front["base_model"] = base
    name = base if is_hub_name else base.replace("\\", "/").rstrip("/").rpartition("/")[2]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {plain(name or 'A dual encoder')}, fine-tuned{f' for the {plain(domain)} domain' if domain else ''}",
        "A model that embeds images and texts into one space, fine-tuned with domainclip on pairs of "
        "images and captions.",
        _scores(run),
        "## Use\n\n```python\n" + loading_code(".", run.get("text_padding"), bool(run.get("own_code"))) + "```",
        "## Limits\n\nThe scores hold for images like those of the test split. Outside the domain the "
        "model may have forgotten part of what its base model knew. It is not a medical device, and no "
        "safety-relevant decision should rest on it alone.",
        "## Licence\n\nNot known. It follows from the licences of the base model and of the training data: "
        "fill it in before you share the model.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(run: Mapping[str, Any]) -> str:
    before, after = (as_result(run.get(when)).metrics for when in ("before", "after"))
    names = compared_metrics(before, after)
    trivial = empty_recalls(names, {**before, **after})
    rows = [
        [METRICS[name].title, _text(name, before.get(name)), _text(name, after.get(name))]
        for name in names
        if name not in trivial
    ]
    if not rows:
        return "## Scores\n\nNot evaluated."
    known = {**before, **after}
    counts = [
        f"{int(known[key])} {words}"
        for key, words in (
            ("n_classified", "classified images"),
            ("n_classes", "classes"),
            ("n_images", "images as retrieval candidates"),
            ("n_texts", "different captions as retrieval candidates"),
        )
        if known.get(key)
    ]
    scores = table(["metric", "before", "after"], rows)
    return f"## Scores on the test split\n\n{scores}\n\nMeasured on {', '.join(counts)}."


def _text(name: str, value: Any) -> str:
    if value is None or value != value:
        return "—"
    return f"{value:.1%}" if METRICS[name].is_fraction else f"{value:.4g}"
