"""The README of the public API: every statement of its code blocks runs, and gives what its comments say."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from domainclip import CLIPFinetuningConfig
from domainclip.models import make_tiny_clip
from domainclip.models.io import save_encoder

pytestmark = pytest.mark.figures

HUB_NAME = "openai/clip-vit-base-patch32"
MODULES = {
    "config": "domainclip",
    "model": "domainclip",
    "losses": "domainclip.losses",
    "alignment": "domainclip.alignment",
    "data.loaders": "domainclip.data",
    "data.dataset": "domainclip.data",
    "data.dataloader": "domainclip.data",
    "data.transforms": "domainclip.data",
}
"""The README's modules are those of an earlier layout."""
PICTURES = ("image1.jpg", "image2.jpg", "image3.jpg", "scan1.jpg", "scan2.jpg", "query.jpg")
STATEMENTS = 100
"""There are more; a README that lost its blocks must not pass."""


@pytest.fixture(scope="module")
def readme() -> str:
    default = Path(__file__).resolve().parents[1] / "../shared/data"
    spec = Path(os.environ.get("DOMAINCLIP_DATA", default)).resolve().parent / "spec" / "reference_readme.md"
    if not spec.is_file():
        pytest.skip(f"the reference README is not at {spec}: set DOMAINCLIP_DATA to the folder data beside spec")
    return spec.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def place(readme: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with every file that the README names."""
    folder = tmp_path_factory.mktemp("readme")
    model = make_tiny_clip(image_size=224, patch_size=56, text_length=77)
    save_encoder(model, folder / "model")
    images = folder / "data" / "images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"picture{index}.jpg" for index in range(40)]
    for path in (*(images / name for name in names), *(folder / name for name in PICTURES)):
        Image.fromarray(rng.integers(0, 256, (60, 70, 3), dtype=np.uint8)).save(path)
    lines = [f"images/{name},a photo of thing {index}" for index, name in enumerate(names)]
    (folder / "data" / "dataset.csv").write_text("image_path,caption\n" + "\n".join(lines) + "\n")
    entries = [f'{{"image": "images/{name}", "caption": "thing {index}"}}' for index, name in enumerate(names)]
    (folder / "data" / "dataset.json").write_text("[" + ", ".join(entries) + "]")
    (images / "captions.txt").write_text("".join(f"{name}\tthing {index}\n" for index, name in enumerate(names)))
    defaults = re.findall(r"^- `(\w+)`: .*\(default: (.+?)\)$", readme, re.MULTILINE)
    (folder / "configs").mkdir()
    (folder / "configs" / "default.yaml").write_text("".join(f"{key}: {value}\n" for key, value in defaults))
    return folder


def close_to(*shape: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, Tensor) and tuple(value.shape) == shape


CLAIMS: dict[str, Callable[[dict[str, Any]], object]] = {
    # the beginning of a statement → what its comment (or its neighbours) say of what it leaves
    "state =": lambda v: v["state"]["device_type"] in ("cpu", "cuda", "mps") and not v["state"]["is_apple_silicon"],
    "text_features =": lambda v: close_to(2, 32)(v["text_features"]),
    "image_features =": lambda v: close_to(2, 32)(v["image_features"]),
    "similarity =": lambda v: (
        close_to(2, 2)(v["similarity"])
        and torch.allclose(
            v["similarity"],
            cosines(
                v["controller"].encode_image([Image.open("scan1.jpg"), Image.open("scan2.jpg")]),
                v["controller"].encode_text(["a medical scan", "a healthy tissue"]),
            ),
            atol=1e-5,
        )
    ),
    "config = CLIPFinetuningConfig(": lambda v: (
        v["config"].domain == "medical" and v["config"].learning_rate == 5e-5 and v["config"].use_mps
    ),
    "controller.setup": lambda v: v["controller"].get_model_state()["status"] != "not_initialized",
    "image_transform =": lambda v: close_to(3, 224, 224)(v["image_transform"](v["image"])),
    "config = CLIPFinetuningConfig.from_dict": lambda v: v["config"].to_dict()["num_epochs"] == 10,
    "pairs =": lambda v: all(isinstance(path, Path) and isinstance(text, str) for path, text in v["pairs"]),
    "dataset =": lambda v: len(v["dataset"]) == 40 and close_to(3, 224, 224)(v["dataset"][0]["pixel_values"]),
    "dataloader =": lambda v: len(v["dataloader"]) == 2,
    "for batch in dataloader": lambda v: (
        close_to(16, 3, 224, 224)(v["pixel_values"])
        and close_to(16, 77)(v["input_ids"])
        and close_to(16, 77)(v["attention_mask"])
    ),
    "image_224 =": lambda v: close_to(3, 224, 224)(v["image_224"]),
    "image_288 =": lambda v: close_to(3, 288, 288)(v["image_288"]),
    "train_loader, val_loader =": lambda v: (len(v["train_loader"]), len(v["val_loader"])) == (2, 1),
    "image_embeds =": lambda v: close_to(5, 32)(v["image_embeds"]),
    "text_embeds =": lambda v: close_to(5, 32)(v["text_embeds"]),
    "output =": lambda v: {"loss", "image_to_text_loss", "text_to_image_loss", "temperature"} <= v["output"].keys(),
    "loss =": lambda v: (
        v["loss"].ndim == 0
        and float(v["loss"]) > 0
        and (type(v["loss_fn"]).__name__ != "CLIPContrastiveLoss" or torch.isclose(v["loss"], plain_loss(v), atol=1e-4))
    ),
    "i2t_loss =": lambda v: torch.isclose(v["output"]["loss"], (v["i2t_loss"] + v["output"]["text_to_image_loss"]) / 2),
    "t2i_loss =": lambda v: v["t2i_loss"].ndim == 0,
    "hard_neg_count =": lambda v: int(v["hard_neg_count"]) >= 0,
    "hard_neg_ratio =": lambda v: 0 <= float(v["hard_neg_ratio"]) <= 0.7,  # half, rounded up row by row
    "scale_losses =": lambda v: torch.isclose(  # the weights are normalised: 4/9, 3/9, 2/9
        v["output"]["loss"], torch.stack(list(v["scale_losses"])) @ torch.tensor([4 / 9, 3 / 9, 2 / 9])
    ),
    "temperatures =": lambda v: torch.allclose(v["temperatures"], torch.tensor([0.07, 0.0525, 0.035])),
    "scheduler =": lambda v: v["scheduler"].get_temperature() == 0.07,
    "for step in": lambda v: 0.01 <= float(v["loss_fn"].temperature) <= 0.1,
    "similarity_matrix =": lambda v: close_to(5, 5)(v["similarity_matrix"]) and v["similarity_matrix"].max() <= 1.0001,
    "top_k_values, top_k_indices =": lambda v: (
        torch.equal(v["top_k_values"], v["similarity_matrix"].gather(1, v["top_k_indices"]))
        and torch.equal(v["top_k_values"], v["similarity_matrix"].sort(dim=1, descending=True).values)
    ),
    "all_metrics =": lambda v: {"i2t_R@1", "t2i_R@10", "i2t_MRR", "t2i_median_rank"} <= v["all_metrics"].keys(),
    "recall_at_5 =": lambda v: v["recall_at_5"] == {"i2t_R@5": 1, "t2i_R@5": 1},  # the first five of five
    "mrr =": lambda v: (
        v["mrr"] == pytest.approx({f"{side}_MRR": float((1 / ranks).mean()) for side, ranks in plain_ranks(v).items()})
    ),
    "median =": lambda v: v["median"] == {f"{side}_median_rank": np.median(r) for side, r in plain_ranks(v).items()},
    "alignment_score =": lambda v: v["alignment_score"] == pytest.approx(float(v["similarity_matrix"].diag().mean())),
    "visualizer.plot_similarity_matrix": lambda v: is_png("outputs/similarity_heatmap.png"),
    "visualizer.plot_retrieval_results": lambda v: is_png("outputs/retrieval_results.png"),
    "visualizer.plot_alignment_distribution": lambda v: is_png("outputs/alignment_distribution.png"),
    "visualizer.plot_recall_curves": lambda v: is_png("outputs/recall_curves.png"),
}


def cosines(images: Tensor, texts: Tensor) -> Tensor:
    return torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T


def plain_loss(v: dict[str, Any]) -> Tensor:
    """CLIP's loss in a plain loop: each image among all texts, each text among all images."""
    logits = cosines(v["image_embeds"], v["text_embeds"]) / 0.07
    rows = [
        torch.nn.functional.cross_entropy(side[i], torch.tensor(i)) for side in (logits, logits.T) for i in range(5)
    ]
    return torch.stack(rows).mean()


def plain_ranks(v: dict[str, Any]) -> dict[str, np.ndarray]:
    """The place of each image's own text and of each text's own image, a tie counting against it."""
    matrix = v["similarity_matrix"]
    return {
        side: np.array([int((scores[i] >= scores[i, i]).sum()) for i in range(len(scores))], dtype=float)
        for side, scores in (("i2t", matrix), ("t2i", matrix.T))
    }


def answers(v: dict[str, Any]) -> bool:
    """What ``results`` is said to be, by the statement that made it."""
    found = v["results"]
    if isinstance(found, dict):  # {query_idx: [(candidate_idx, score), ...], ...}
        rows = list(found.values())
        return list(found) == [0, 1, 2] and all(
            len(row) == 2 and all(isinstance(index, int) and index < 4 for index, _ in row) for row in rows
        )
    kind = str if isinstance(found[0][0], str) else int
    scores = [score for _, score in found]
    controller = v["controller"]
    if kind is str:
        query, candidates = controller.encode_image([v["query_image"]]), controller.encode_text(v["candidate_texts"])
        names: list[Any] = v["candidate_texts"]
    else:
        query, candidates = controller.encode_text([v["query_text"]]), controller.encode_image(v["candidate_images"])
        names = list(range(3))
    wanted = dict(zip(names, cosines(query, candidates)[0].tolist(), strict=True))
    if {name: pytest.approx(score, abs=1e-5) for name, score in found} != wanted:
        return False
    return all(isinstance(hit, tuple) and type(hit[0]) is kind for hit in found) and scores == sorted(scores)[::-1]


def is_png(path: str) -> bool:
    with Image.open(path) as image:
        return image.format == "PNG" and min(image.size) > 100


def standing_in(statement: ast.stmt, place: Path) -> ast.stmt:
    """The statement with the package's modules, and with a small model in place of the hub's."""
    for node in ast.walk(statement):
        if isinstance(node, ast.ImportFrom):
            node.module = MODULES.get(node.module or "", node.module)
        elif isinstance(node, ast.Constant) and node.value == HUB_NAME:
            node.value = str(place / "model")
    return statement


def test_every_statement_runs(readme: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    # What the README takes for granted: a picture, some pictures with their texts, the model of the loss functions.
    pictures = [Image.open(name) for name in PICTURES[:5]]
    values: dict[str, Any] = {
        "image": pictures[0],
        "images": pictures,
        "texts": [f"a photo of thing {index}" for index in range(5)],
        "num_steps": 3,
    }
    failures, done, claimed = [], 0, set()
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        for statement in ast.parse(block).body:
            source = ast.unparse(statement)
            code = compile(ast.Module([standing_in(statement, place)], []), "README", "exec")
            done += 1
            try:
                exec(code, values)
                if "controller" in values:
                    values["model"] = values["controller"]
                claim = next((claim for claim in CLAIMS if source.startswith(claim)), None)
                if claim is not None:
                    claimed.add(claim)
                    assert CLAIMS[claim](values), "not what the comment says"
                if source.startswith("results ="):
                    assert answers(values), "not what the comment says"
            except Exception as error:
                failures.append(f"{source[:100]!r}: {type(error).__name__}: {error}")
            if source.startswith("image_features ="):  # two pictures, where later blocks want one for each text
                values["images"] = pictures
    assert not failures, f"{len(failures)} of {done} statements:\n" + "\n".join(failures)
    assert done > STATEMENTS
    assert claimed == set(CLAIMS)


def test_every_choice_that_a_comment_names_is_taken(readme: str) -> None:
    """``mining_strategy="semi-hard",  # semi-hard, hard, or weighted``."""
    import domainclip.alignment as alignment
    import domainclip.losses as losses

    tried = 0
    for block in re.findall(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL):
        for key, comment in re.findall(r'^ +(\w+)="[\w-]+",  # (.+)$', block, re.MULTILINE):
            for call in (node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)):
                named = {word.arg: word.value for word in call.keywords}
                if key not in named or not isinstance(call.func, ast.Name):
                    continue
                made = getattr(losses, call.func.id, None) or getattr(alignment, call.func.id)
                given = {str(name): ast.literal_eval(value) for name, value in named.items()}
                for choice in re.split(r", (?:or )?", comment):
                    made(**{**given, key: choice})
                    tried += 1
    assert tried >= 15


def test_every_key_has_the_default_that_the_readme_says(readme: str, place: Path) -> None:
    stated, plain = CLIPFinetuningConfig.from_yaml(place / "configs" / "default.yaml"), CLIPFinetuningConfig()
    assert len(stated.model_fields_set) > 30
    for key in stated.model_fields_set:
        assert getattr(stated, key) == getattr(plain, key), key
    section = readme[readme.index("## Configuration") : readme.index("## Testing")]
    assert set(re.findall(r"^- `(\w+)`: ", section, re.MULTILINE)) <= set(type(plain).model_fields)
