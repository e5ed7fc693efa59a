"""The command: what users type, what they read, and the exit codes."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from domainclip.config import CLIPFinetuningConfig
from domainclip.reports.schema import RunReport
from report_cases import pages

pytestmark = [pytest.mark.slow, pytest.mark.figures]

RUN_FILES = {
    ".domainclip.json",
    "recipe.yaml",
    "domain.yaml",
    "run.json",
    "data.json",
    "before.json",
    "metrics.jsonl",
    "milestones.jsonl",
    "validations.jsonl",
    "classes.json",
    "progress.json",
    "memory.json",
    "checkpoints",
    "model",
    "report.md",
    "report_details.md",
    "report.json",
    "plots",
    "predictions.csv",
}


def debug_train(domainclip, data: Path, output: Path, *more: object):
    return domainclip("train", "-r", "debug", "--data", data, "--output", output, *more)


@pytest.fixture(scope="module")
def finished_run(tiny_data, tmp_path_factory) -> Path:
    """The folder of one finished debug run, made by the real command in its own process."""
    folder = tmp_path_factory.mktemp("run") / "first"
    command = [sys.executable, "-c", "from domainclip.cli import main; main()", "train", "-r", "debug"]
    done = subprocess.run(
        [*command, "--data", str(tiny_data.folder), "--output", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "image_resolution = 32  (what the model's own image processor says)" in done.stderr
    assert "Before and after, test split" in done.stderr
    return folder


def test_help_needs_no_torch():
    code = (
        "import sys; sys.argv = ['domainclip', *{}]\n"
        "from domainclip.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        "heavy = {{'torch', 'transformers', 'numpy', 'PIL'}} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import time; print('CPU seconds:', time.process_time(), file=sys.stderr)"  # shown by pytest -s
    )
    for arguments in (["--help"], ["train", "--help"], ["config", "show"], ["config", "validate", "medical"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(arguments)], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout) > 20
        print(arguments, done.stderr.strip().splitlines()[-1])


def test_help_lists_the_commands(domainclip):
    result = domainclip("--help")
    assert result.exit_code == 0
    for command in ("tune", "train", "evaluate", "demo", "doctor", "config", "data", "version"):
        assert command in result.out


def test_version(domainclip):
    assert domainclip("version").out.strip() == version("domainclip")


def test_unknown_command_and_option(domainclip):
    assert domainclip("trian").exit_code == 2
    assert domainclip("train", "--no-such-option").exit_code == 2


# --- config ---


def test_config_show_as_json_has_every_key_once(domainclip):
    rows = json.loads(domainclip("config", "show", "--recipe", "medical", "seed=7", "--json").out)
    by_key = {row["key"]: row for row in rows}
    assert len(rows) == len(by_key)
    assert by_key.keys() == CLIPFinetuningConfig.model_fields.keys()
    assert by_key["seed"] == {
        "key": "seed",
        "section": "data",
        "value": 7,
        "source": "set",
        "meaning": CLIPFinetuningConfig.model_fields["seed"].description,
    }
    assert (by_key["learning_rate"]["value"], by_key["learning_rate"]["source"]) == (3e-5, "preset")
    assert by_key["batch_size"]["source"] == "default"


def test_config_show_tells_a_preset_from_a_default(domainclip):
    rows = json.loads(domainclip("config", "show", "domain=medical", "--json").out)
    sources = {row["key"]: (row["value"], row["source"]) for row in rows}
    assert sources["horizontal_flip"] == (False, "preset")
    assert sources["domain"] == ("medical", "set")


def test_config_show_as_text(domainclip):
    result = domainclip("config", "show", "output_dir=[bold]runs[/bold]")
    assert "learning_rate" in result.out
    assert "[bold]runs[/bold]" in result.out


def test_config_validate(domainclip, tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("seed: 3\ndomain: medical\n")
    bad.write_text("seed: 3\nbatch_sise: 4\n")
    result = domainclip("config", "validate", good)
    assert (result.exit_code, result.out.strip()) == (0, f"{good}: valid; sets domain, seed")
    result = domainclip("config", "validate", bad)
    assert result.exit_code == 2
    assert f"Unknown key 'batch_sise': did you mean 'batch_size'? [{bad} line 2]" in result.err
    assert domainclip("config", "validate", "medical").exit_code == 0


def test_environment_lies_between_recipe_and_command_line(domainclip, monkeypatch):
    monkeypatch.setenv("DOMAINCLIP_LEARNING_RATE", "0.5")
    monkeypatch.setenv("DOMAINCLIP_CACHE", "/elsewhere")

    def rate(*overrides: str) -> float:
        rows = json.loads(domainclip("config", "show", "-r", "medical", *overrides, "--json").out)
        return next(row["value"] for row in rows if row["key"] == "learning_rate")

    assert rate() == 0.5
    assert rate("learning_rate=0.25") == 0.25
    monkeypatch.setenv("DOMAINCLIP_LEARNIG_RATE", "0.5")
    result = domainclip("config", "show")
    assert result.exit_code == 2
    assert "did you mean DOMAINCLIP_LEARNING_RATE" in result.err


# --- train ---


def test_train_writes_all_that_repeats_and_reports_the_run(finished_run):
    assert {entry.name for entry in finished_run.iterdir()} == RUN_FILES
    recipe = yaml.safe_load((finished_run / "recipe.yaml").read_text())
    assert recipe.keys() == CLIPFinetuningConfig.model_fields.keys()
    assert recipe["model_name"] == "tiny"
    assert recipe["image_resolution"] == 32
    run = json.loads((finished_run / "run.json").read_text())
    assert run["command"][1] == "train"
    assert run["environment"]["packages"]["torch"] == torch.__version__
    assert {"key", "value", "reason"} == set(run["decisions"][0])
    steps = [json.loads(line) for line in (finished_run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in steps if "loss" in row]
    assert len(losses) == 2  # 18 rows in batches of 8, one epoch
    report = json.loads((finished_run / "report.json").read_text())
    assert report["data"]["counts"] == {"train": 18, "validation": 6, "test": 6}
    assert report["training"]["train_loss"] == pytest.approx(sum(losses) / 2)
    assert 0 <= report["after"]["acc1"] <= 1
    assert report["warnings"] == []
    assert RunReport.model_validate_json((finished_run / "report.json").read_text()).after == report["after"]
    text = pages(finished_run)
    for plot in re.findall(r"\]\((plots/[^)]+)\)", text):
        assert (finished_run / plot).stat().st_size > 1000
    assert list((finished_run / "plots").iterdir())
    assert (finished_run / "model" / "README.md").is_file()


def test_the_code_of_a_report_runs(finished_run, tiny_data, tmp_path, monkeypatch, capsys):
    Image.open(tiny_data.pairs("test")[0].image_path).convert("RGB").save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (finished_run / "report.md").read_text(), re.S)
    assert len(code.splitlines()) == 3
    exec(code, {})
    chances = ast.literal_eval(re.findall(r"probabilities=({.*?})", capsys.readouterr().out)[0])
    assert sorted(chances) == ["brick", "grass", "sky"] and sum(chances.values()) == pytest.approx(1)
    (code,) = re.findall(r"```python\n(.*?)```", (finished_run / "report_details.md").read_text(), re.S)
    exec(code, {})
    assert "tensor([[" in capsys.readouterr().out


def test_saved_model_loads_with_plain_transformers(finished_run, tiny_data):
    model = CLIPModel.from_pretrained(finished_run / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "model")
    images = AutoImageProcessor.from_pretrained(finished_run / "model", backend="pil")
    image = Image.open(tiny_data.pairs("test")[0].image_path).convert("RGB")
    with torch.no_grad():
        output = model(
            **tokenizer(["a texture of brick", "a texture of sky"], padding=True, return_tensors="pt"),
            **images(images=image, return_tensors="pt"),
        )
    assert output.logits_per_image.shape == (1, 2)
    assert torch.isfinite(output.logits_per_image).all()


def test_recipe_of_a_run_repeats_it(finished_run, tiny_data, tmp_path, domainclip):
    again = tmp_path / "again"
    result = domainclip("train", "-r", finished_run / "recipe.yaml", "--output", again)
    assert result.exit_code == 0, result.err

    def figures(folder: Path) -> tuple:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        report = json.loads((folder / "report.json").read_text())
        return [row["loss"] for row in rows if "loss" in row], report["before"], report["after"]

    assert figures(again) == figures(finished_run)


def test_second_run_in_the_same_folder(finished_run, tiny_data, tmp_path, domainclip):
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    (folder / "notes.txt").write_text("the user's own")
    result = debug_train(domainclip, tiny_data.folder, folder)
    assert result.exit_code == 2
    assert "--resume" in result.err
    assert "--overwrite" in result.err
    assert debug_train(domainclip, tiny_data.folder, folder, "--resume", "--overwrite").exit_code == 2

    # A refused run deletes nothing.
    weights = (folder / "model" / "model.safetensors").read_bytes()
    assert debug_train(domainclip, tmp_path / "no_data", folder, "--overwrite").exit_code == 2
    assert debug_train(domainclip, tiny_data.folder, folder, "--overwrite", "-m", tmp_path / "no_model").exit_code == 2
    assert (folder / "model" / "model.safetensors").read_bytes() == weights
    assert {entry.name for entry in folder.iterdir()} == RUN_FILES | {"notes.txt"}

    result = debug_train(domainclip, tiny_data.folder, folder, "--overwrite", "seed=5")
    assert result.exit_code == 0, result.err
    assert (folder / "model" / "model.safetensors").read_bytes() != weights
    assert (folder / "notes.txt").read_text() == "the user's own"
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["seed"] == 5


def test_finished_run_resumes_to_the_same_figures(finished_run, tiny_data, tmp_path, domainclip):
    folder = tmp_path / "copy"
    shutil.copytree(finished_run, folder)
    before = json.loads((folder / "report.json").read_text())
    result = debug_train(domainclip, tiny_data.folder, folder, "--resume")
    assert result.exit_code == 0, result.err
    after = json.loads((folder / "report.json").read_text())
    assert after["after"] == before["after"]
    assert after["before"] == before["before"]


def test_going_on_from_an_own_model(finished_run, tiny_data, tmp_path, domainclip):
    result = debug_train(domainclip, tiny_data.folder, tmp_path / "out", "-m", finished_run / "model")
    assert result.exit_code == 0, result.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["before"] == json.loads((finished_run / "report.json").read_text())["after"]


# --- evaluate ---


def test_evaluate(finished_run, tiny_data, tmp_path, domainclip):
    options = ["evaluate", "--model", finished_run / "model", "--data", tiny_data.folder]
    figures = tmp_path / "deep" / "figures.json"
    result = domainclip(*options, "--json", "--output", figures)
    assert result.exit_code == 0, result.err
    printed = json.loads(result.out)
    assert printed == json.loads(figures.read_text())
    assert printed["split"] == "test"
    assert printed["skipped"] == []
    reported = json.loads((finished_run / "report.json").read_text())["after"]
    for name in ("acc1", "i2t_R@1", "t2i_MRR"):
        assert printed["metrics"][name] == pytest.approx(reported[name])
    # The accuracy is that of the predictions listed beside it.
    found = printed["details"]["classification"]
    right = np.mean([a == b for a, b in zip(found["predictions"], found["targets"], strict=True)])
    assert printed["metrics"]["acc1"] == pytest.approx(right)

    text = domainclip(*options)
    assert text.exit_code == 0
    assert re.search(rf"acc1\D+{printed['metrics']['acc1']:.4f}", text.out)


def test_evaluate_splits(tiny_data, domainclip):
    counts = {}
    for split in ("train", "val", "test", "all"):
        result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--split", split, "--json")
        counts[split] = json.loads(result.out)["metrics"]["n_classified"]
    assert counts == {"train": 18, "val": 6, "test": 6, "all": 30}
    result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--split", "tset")
    assert result.exit_code == 2
    assert "Invalid split 'tset'" in result.err


def test_evaluate_output_that_cannot_be_written(tiny_data, tmp_path, domainclip):
    (tmp_path / "file").write_text("")
    for output, what in ((tmp_path, "is a directory"), (tmp_path / "file" / "x.json", "cannot be written")):
        result = domainclip("evaluate", "-m", "tiny", "-d", tiny_data.folder, "--output", output)
        assert result.exit_code == 2
        assert what in result.err


# --- data check ---


def test_data_check_exit_codes(tiny_data, tmp_path, domainclip):
    result = domainclip("data", "check", tiny_data.folder, "batch_size=6")
    assert result.exit_code == 0, result.out
    result = domainclip("data", "check", tiny_data.folder, "--json", "--model", "tiny")
    assert json.loads(result.out)["rows"] == {"train": 18, "validation": 6, "test": 6}

    shutil.copytree(tiny_data.folder, tmp_path / "bad")
    (tmp_path / "bad" / "images" / "sky_0.jpg").write_bytes(b"\xff\xd8\xff broken")
    for strict, code in (("strict=false", 0), ("strict=true", 1)):  # as train does
        result = domainclip("data", "check", tmp_path / "bad", strict)
        assert result.exit_code == code
        assert "sky_0.jpg" in result.out
    assert domainclip("data", "check", tmp_path / "nothing").exit_code == 2


def test_resume_needs_the_folder_alone(domainclip, tiny_data, tmp_path):
    run = tmp_path / "run"
    assert debug_train(domainclip, tiny_data.folder, run, "save_steps=1").exit_code == 0
    first = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert domainclip("train", "--output", run, "--resume").exit_code == 0
    again = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert again["training"]["resumed_from"] == first["training"]["steps"]
    assert again["after"] == first["after"]
    assert again["decisions"] == first["decisions"] != []
