"""``domainclip predict``, ``embed`` and ``search``: what a trained model is for."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from domainclip import CLIPFinetuningConfig, ModelSession, run_training
from domainclip.retrieval.store.store import EmbeddingStore
from tiny_data import TinyData

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny_data: TinyData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "mine"
    config = CLIPFinetuningConfig(
        model_name="tiny", data_path=tiny_data.folder, output_dir=folder, max_steps=4, device="cpu"
    )
    run_training(config, console=Console(quiet=True))
    return folder


def test_accuracy_by_predict_is_the_reports(domainclip, run: Path, tiny_data: TinyData) -> None:
    report = json.loads((run / "report.json").read_text())
    result = domainclip("predict", tiny_data.table("test"), "--model", run / "model", "--json")
    assert result.exit_code == 0, result.err
    found = json.loads(result.out)
    assert found["accuracy"] == pytest.approx(report["after"]["acc1"])
    assert found["classes"] == ["brick", "grass", "sky"]
    with open(run / "predictions.csv", newline="") as file:
        reported = {Path(row["image_path"]).name: row["predicted_after"] for row in csv.DictReader(file)}
    assert {Path(row["image"]).name: row["label"] for row in found["predictions"]} == reported


def test_images_folders_and_paths_on_standard_input(
    domainclip, run: Path, tiny_data: TinyData, tmp_path: Path, monkeypatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = sorted((tiny_data.folder / "images").glob("sky*"))
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{images[0]}\n\n{broken}\n"))
    output, sheet = tmp_path / "found.csv", tmp_path / "sheet.png"
    files = ("--output", output, "--sheet", sheet)
    result = domainclip(
        "predict", "-", images[1], "-m", run / "model", "--labels", "sky, grass", *files, "eval_batch_size=2"
    )
    assert result.exit_code == 0, result.err
    assert "Unreadable: 1 of 3 images" in result.out
    with open(output, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [str(images[0]), str(broken), str(images[1])]
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    for row in (rows[0], rows[2]):
        assert float(row["sky"]) + float(row["grass"]) == pytest.approx(1)
        assert float(row["probability"]) == max(float(row["sky"]), float(row["grass"]))
    assert Image.open(sheet).size[0] > 400
    lines = tmp_path / "found.jsonl"
    assert domainclip("predict", images[0], "--model", run / "model", "-o", lines).exit_code == 0
    assert json.loads(lines.read_text())["image"] == str(images[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["photo.png"], "No model: name the folder of one with --model"),
        (["--model", "MODEL"], "No images"),
        (["photo.png", "--model", "MODEL", "--output", "found.txt"], "ends in .csv or .jsonl"),
        (["photo.png", "--model", "MODEL", "--labels", "a,,b"], "an empty class"),
        (["photo.png", "--model", "MODEL", "--labels", "[1]"], "something else than texts"),
        (["IMAGE", "--model", "MODEL", "--top-k", "9"], "top_k must be in range 1 to 3"),
        (["photo.png", "--model", "MODEL"], "photo.png is not there"),
        (["photo.png", "--model", "nowhere/model"], "nowhere/model"),
        (["photo.png", "--model", "MODEL", "domian=medical"], "did you mean"),
    ],
)
def test_what_is_wrong_is_said(
    domainclip, run: Path, tiny_data: TinyData, arguments: list[str], words: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    meant = {"MODEL": run / "model", "IMAGE": tiny_data.folder / "images" / "sky_0.jpg"}
    result = domainclip("predict", *[meant.get(each, each) for each in arguments])
    assert result.exit_code == 2
    assert words in result.err


def test_embeddings_are_the_sessions(domainclip, run: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(tiny_data.folder, tmp_path / "photos"))
    (photos / "images" / "broken.png").write_bytes(b"no image")
    store = tmp_path / "store"
    arguments = ["embed", photos, "--model", run / "model", "--output", store]
    first = domainclip(*arguments, "--json")
    assert first.exit_code == 0, first.err
    counts = json.loads(first.out)
    assert (counts["rows"], counts["errors"], counts["encoded"]) == (31, 1, 30)
    opened = EmbeddingStore.open(store)
    rows, embeddings = list(opened.rows()), np.concatenate(list(opened.embeddings()))
    session = ModelSession.from_pretrained(run / "model", Console(quiet=True))
    good = [at for at, row in enumerate(rows) if not row.error]
    expected = session.encode_images([rows[at].path for at in good]).numpy()
    np.testing.assert_allclose(embeddings[good], expected, atol=1e-6)
    assert {row.label for row in rows} == {"brick", "grass", "sky", ""}
    (photos / "images").rename(photos / "renamed")
    for table in photos.glob("*.csv"):
        table.write_text(table.read_text().replace("images/", "renamed/"))
    second = json.loads(domainclip(*arguments, "--json").out)
    assert (second["encoded"], second["reused"], second["rows"]) == (0, 30, 31)
    third = domainclip(*arguments)
    assert "Up to date: 31 rows" in third.out
    assert "Unreadable: 1 of 31 rows" in third.out
    other = domainclip("embed", photos, "--model", "tiny", "--output", store)
    assert other.exit_code == 2
    assert "of another model" in other.err


def test_a_store_among_the_images_is_none_of_them(domainclip, run: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    photos = Path(shutil.copytree(tiny_data.folder / "images", tmp_path / "photos"))
    for _ in range(2):
        result = domainclip("embed", photos, "--model", run / "model", "--output", photos / "store", "--json")
        assert result.exit_code == 0, result.err
        assert json.loads(result.out)["rows"] == 30
    refused = domainclip("embed", tmp_path, "--model", run / "model", "--output", photos)
    assert refused.exit_code == 2
    assert "holds images of" in refused.err


@pytest.mark.slowest
def test_two_processes_write_what_one_writes(run: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    from domainclip.pipelines.embed import run_embedding

    config = CLIPFinetuningConfig(model_name=str(run / "model"), device="cpu", eval_batch_size=4)
    one = run_embedding(config, [tiny_data.folder], tmp_path / "one", shard_rows=8)
    script = (
        "import sys\n"
        "from domainclip import CLIPFinetuningConfig\n"
        "from domainclip.pipelines.embed import run_embedding\n"
        "if __name__ == '__main__':\n"
        "    config = CLIPFinetuningConfig(model_name=sys.argv[1], device='cpu', eval_batch_size=4)\n"
        "    print(run_embedding(config, [sys.argv[2]], sys.argv[3], shard_rows=8, workers=2).encoded)\n"
    )
    (tmp_path / "two.py").write_text(script)
    command = [sys.executable, tmp_path / "two.py", run / "model", tiny_data.folder, tmp_path / "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "30"
    two = EmbeddingStore.open(tmp_path / "two")
    assert [shard.rows for shard in two.generation.shards] == [8, 8, 8, 6]
    for first, second in zip(one.store.paths, two.paths, strict=True):
        np.testing.assert_allclose(*(np.concatenate(list(s.embeddings())) for s in (one.store, two)), atol=1e-6)
        assert first.name == second.name


def test_search_finds_what_the_session_says(domainclip, run: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    store, model = tmp_path / "store", run / "model"
    assert domainclip("embed", tiny_data.folder, "--model", model, "--output", store).exit_code == 0
    session = ModelSession.from_pretrained(model, Console(quiet=True))
    paths = sorted((tiny_data.folder / "images").iterdir())
    image = paths[7]
    result = domainclip("search", "a texture of sky", image, "--index", store, "-k", 4, "--json")
    assert result.exit_code == 0, result.err
    text_answer, image_answer = json.loads(result.out)["queries"]
    for answer, query in (
        (text_answer, session.encode_text("a texture of sky")),
        (image_answer, session.encode_image(image)),
    ):
        scores = (session.encode_images(paths) @ query[0]).tolist()
        wanted = sorted(zip(scores, map(str, paths), strict=True), key=lambda each: -each[0])[:4]
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([score for score, _ in wanted], abs=1e-5)
    assert image_answer["hits"][0]["image"] == str(image)
    sheet = tmp_path / "found.png"
    shown = domainclip("search", image, "-i", store, "-k", 3, "--where", "label=grass", "--sheet", sheet)
    assert shown.exit_code == 0, shown.err
    assert shown.out.count("grass_") == 3
    assert sheet.is_file()
    pairs = domainclip("search", "-i", store, "--duplicates", 0.0, "--json")
    assert len(json.loads(pairs.out)) > 0
    unlike = domainclip("search", "-i", store, "--unlike", store, "-k", 2)
    assert "Least like" in unlike.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a text"], "No index"),
        (["-i", "nowhere"], "Give a query"),
        (["a text", "-i", "nowhere"], "nowhere holds no embeddings"),
        (["a text", "-i", "nowhere", "--duplicates", "0.9"], "one of the three"),
        (["gone.png", "-i", "nowhere"], "no such file"),
        (["", "-i", "nowhere"], "The query is empty"),
        ([".", "-i", "nowhere"], "is a folder"),
        (["a", "-i", "nowhere", "--sheet", "x.jpg"], "ends in .png"),
    ],
)
def test_what_is_wrong_with_a_search_is_said(
    domainclip, arguments: list[str], words: str, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = domainclip("search", *arguments)
    assert result.exit_code == 2
    assert words in result.err


@pytest.mark.parametrize("backend", ["openvino", "onnx"])
def test_a_text_is_searched_without_torch(run: Path, tiny_data: TinyData, tmp_path: Path, backend: str) -> None:
    """By the graph that the embedding has stored; the answers are those of the model itself."""
    pytest.importorskip("onnxruntime" if backend == "onnx" else backend, reason="an extra")
    model = Path(shutil.copytree(run / "model", tmp_path / "model"))
    program = (
        "import json, sys\n"
        "from domainclip.cli import main\n"
        "if __name__ == '__main__':\n"
        "    try: main()\n"
        "    except SystemExit as stop: assert not stop.code, stop.code\n"
        "    print(json.dumps([name for name in ('torch', 'transformers', 'pandas') if name in sys.modules]))\n"
    )

    def answer(*arguments: object) -> tuple[str, list[str]]:
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stderr
        out, _, heavy = done.stdout.rstrip().rpartition("\n")
        return out, json.loads(heavy)

    store = tmp_path / "store"
    assert "torch" in answer("embed", tiny_data.folder, "-m", model, "-o", store, f"backend={backend}:fp32")[1]
    out, heavy = answer("search", "a texture of sky", "--index", store, "-k", 3, "--json")
    assert heavy == []
    _, heavy = answer("search", tiny_data.folder / "images" / "sky_0.jpg", "--index", store, "-k", 3, "--json")
    assert "torch" in heavy
    shutil.rmtree(model / "backends")
    by_model, heavy = answer("search", "a texture of sky", "--index", store, "-k", 3, "--json")
    assert "torch" in heavy
    found, wanted = (json.loads(each)["queries"][0]["hits"] for each in (out, by_model))
    assert [hit["image"] for hit in found] == [hit["image"] for hit in wanted]
    assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in wanted], abs=1e-4)
