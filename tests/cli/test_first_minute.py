"""What is wrong with a command is said at once, with the right spelling, before torch is imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

CHILD = """
import contextlib, io, json, sys
from domainclip.cli import main

found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["domainclip", *arguments]
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    heavy = [name for name in ("torch", "transformers", "numpy", "sklearn") if name in sys.modules]
    found.append([code or 0, err.getvalue(), heavy])
print(json.dumps(found))
"""

WRONG = [
    ("tran",),
    ("train", "learning_rat=1"),
    ("train", "learning_rate=-1"),
    ("train", "learning_rate"),
    ("train", "--epochs", "3"),
    ("train", "--data", "nowhere", "--model", "tiny"),
    ("train", "--data", "nowhere.csv"),
    ("train", "--data", "empty.csv"),
    ("train", "--data", "table.csv", "--model", "nowhere/at/all"),
    ("train", "--data", "table.csv", "--model", "./nowhere"),
    ("train", "--recipe", "gone.yaml"),
    ("train", "--recipe", "defalt"),
    ("train", "--domain", "medcal"),
    ("train", "--data", "table.csv", "--model", "tiny", "retention_data=[nowhere.csv]"),
    ("train", "--data", "table.csv", "--model", "tiny", "--output", "table.csv"),
    ("train", "--resume", "--output", "nowhere"),
    ("evaluate", "--data", "nowhere", "--model", "tiny"),
    ("evaluate", "--data", "table.csv", "--model", "tiny", "--split", "tset"),
    ("evaluate", "--data", "table.csv", "--model", "tiny", "--output", "."),
    ("compare", "--model", "tiny", "--data", "nowhere"),
    ("align", "report", "--data", "nowhere", "--model", "tiny"),
    ("tune", "--data", "nowhere", "--model", "tiny"),
    ("data", "check", "nowhere"),
    ("data", "preview", "--data", "nowhere"),
    ("data", "preview", "--data", "table.csv", "--output", "sheet.jpg"),
    ("doctor", "--device", "tpu"),
    ("memory", "plan", "--device", "tpu"),
    ("config", "show", "epoch=3"),
    ("config", "validate", "gone.yaml"),
    ("domain", "show", "medcal"),
    ("domain", "glossary", "gone.yaml"),
]
COMMANDS_WITH_KEYS = [
    ("train", "--data", "table.csv", "--model", "tiny"),
    ("tune", "--data", "table.csv", "--model", "tiny"),
    ("evaluate", "--data", "table.csv", "--model", "tiny"),
    ("compare", "--data", "table.csv", "--model", "tiny"),
    ("align", "report", "--data", "table.csv", "--model", "tiny"),
    ("data", "check", "table.csv"),
    ("data", "preview", "--data", "table.csv"),
    ("demo",),
]
KEYS = {
    "evaluators=[retrieval,clasification]": "did you mean 'classification'?",
    "evaluators=[mine]": "choose one of classification, retrieval",
    "primary_metric=acc": "did you mean 'acc1'?",
    "primary_metric=mAP1": "did you mean 'mAP'?",
    "loss_type=contrastve": "did you mean 'contrastive'?",
    "objectives=sigmod:1": "did you mean 'sigmoid'?",
    "class_hierarchy=tabel.csv": "did you mean table.csv?",
    "plugins=[mine.py]": "there is no file",
    "plugins=[no_such_module_here]": "there is no module 'no_such_module_here'",
    "image_root=picturs": "did you mean pictures?",
    "domain=mine.yaml": "there is no such file",
    "text_preprocessing={glossary: medcal}": "Did you mean 'medical'?",
    "text_preprocessing={glossary: mine.yaml}": "Glossary mine.yaml does not exist",
    "precision=fp8": "choose 'fp32', 'bf16' or 'fp16'",
    **({} if sys.platform == "darwin" else {"device=mps": "not a Mac"}),
}
WRONG += [(*command, key) for command in COMMANDS_WITH_KEYS for key in KEYS]
WRONG += [
    ("tune", "--data", "table.csv", "--model", "tiny", "--space", "gone.yaml"),
    ("tune", "--data", "table.csv", "--model", "tiny", "--search", "learning_rat=1..2"),
    ("tune", "--data", "table.csv", "--model", "tiny", "--search", "loss_type=contrastve,sigmoid"),
    ("evaluate", "--data", "table.csv", "--model", "tiny", "--resolutions", "abc"),
    ("evaluate", "--data", "table.csv", "--model", "tiny", "--error-analysis", "table.csv"),
    ("compare", "--data", "table.csv", "--model", "tiny", "--reference", "other"),
    ("memory", "plan", "--precision", "fp8"),
    ("memory", "plan", "--optimizer", "adm"),
    ("memory", "plan", "--resolutions", "a"),
    ("demo", "--output", "table.csv"),
    ("config", "validate", "default", "evaluators=[mine]"),
]
WRONG.append(("compare", "--data", "table.csv", "--model", "tiny", "--metric", "acc"))


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[tuple[str, ...], tuple[int, str, list[str]]]:
    """The answers of a fresh process to all of them."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "table.csv").write_text("image_path,caption\na.png,a\n")
    (folder / "empty.csv").write_text("")
    (folder / "pictures").mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DOMAINCLIP_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(WRONG)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return {arguments: tuple(found) for arguments, found in zip(WRONG, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_an_error_needs_no_torch(arguments, answers) -> None:
    code, err, heavy = answers[arguments]
    assert code == 2, err
    assert err.strip()
    assert "Traceback" not in err
    assert heavy == []
    for key, words in KEYS.items():
        if key in arguments:
            assert words in err


def test_the_names_that_a_key_knows_are_those_that_there_are() -> None:
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.config.key_facts import facts_of
    from domainclip.evaluation.build import EVALUATORS
    from domainclip.losses import LOSSES

    for key, registry in (("evaluators", EVALUATORS), ("loss_type", LOSSES), ("objectives", LOSSES)):
        own = {name for name, entry in registry.entries.items() if entry.__module__.startswith("domainclip.")}
        assert set(facts_of(CLIPFinetuningConfig, key).names) == own


@pytest.mark.parametrize("device", ["cuda", None])
def test_a_build_for_the_cpu_only_is_known_without_torch(device, monkeypatch) -> None:
    from domainclip.cli import start_checks
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.errors import ConfigurationError, DeviceError

    config = CLIPFinetuningConfig(device=device, precision="fp16")
    monkeypatch.setattr(start_checks.platform, "system", lambda: "Linux")
    monkeypatch.setattr(start_checks, "version", lambda package: "2.13.0+cpu")
    error, words = (DeviceError, "built for the CPU") if device else (ConfigurationError, "precision=fp16 on cpu")
    with pytest.raises(error, match=words):
        start_checks.check_recipe(config)
    monkeypatch.setattr(start_checks, "version", lambda package: "2.13.0+cu128")  # whether there is a card is tried
    start_checks.check_recipe(config)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--epochs", "3"), "write num_epochs=3"),
        (("train", "--epochs=3"), "write num_epochs=3"),
        (("train", "--batch-size", "8"), "write batch_size=8"),
        (("train", "--batch_size", "8"), "write batch_size=8"),
        (("train", "--lr", "1e-4"), "write learning_rate=1e-4"),
        (("train", "--learning_rate", "1e-4"), "write learning_rate=1e-4"),
        (("train", "--learning-rat", "1e-4"), "write learning_rate=1e-4"),
        (("tune", "--weight-decay"), "write weight_decay=VALUE"),
        (("compare", "--seed", "3"), "write seed=3"),
        (("train", "--out", "x"), "did you mean --output?"),
        (("train", "--dataset", "x"), "did you mean --data?"),
        (("evaluate", "--modle", "x"), "did you mean --model?"),
        (("data", "check", "x", "--patience", "3"), "write early_stopping_patience=3"),
        (("train", "--frobnicate"), "train --help"),
        (("train", "epoch=3"), "did you mean 'num_epochs'?"),
        (("train", "lr=3"), "did you mean 'learning_rate'?"),
        (("train", "output=x"), "did you mean 'output_dir'?"),
        (("train", "learning_rate", "=", "1e-5"), "write learning_rate=VALUE, without blanks"),
        (("train", "—resume"), "Write --resume"),
        (("train", "–output", "x"), "Write --output"),
        (("train", "data.csv"), "--data"),
        (("train", "--data", "DATA/trian.csv"), "did you mean DATA/train.csv?"),
        (("evaluate", "--split", "tests"), "Invalid split 'tests'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_the_right_spelling_is_named(arguments, words, domainclip, tiny_data) -> None:
    data = str(tiny_data.folder)
    result = domainclip(*(each.replace("DATA", data) for each in arguments))
    assert result.exit_code == 2
    assert words.replace("DATA", data) in " ".join(result.err.split())


def test_the_version(domainclip) -> None:
    result = domainclip("--version")
    assert result.exit_code == 0
    assert result.out.startswith("domainclip ")


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "compare", "tune", "align report", "data check", "config show"]
)
def test_every_command_takes_a_domain(command, domainclip) -> None:
    result = domainclip(*command.split(), "--domain", "medcal", *(["x"] if command == "data check" else []))
    assert result.exit_code == 2
    assert "did you mean 'medical'?" in result.err


def test_other_names_of_keys_are_no_keys() -> None:
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.config.key_facts import facts_by_key

    also = [name for _, facts in facts_by_key(CLIPFinetuningConfig) for name in facts.also]
    assert len(also) == len(set(also))
    assert not set(also) & set(CLIPFinetuningConfig.model_fields)


COMMANDS = [
    *("", "train", "evaluate", "compare", "tune", "demo", "doctor", "version", "config", "config show"),
    *("config validate", "data", "data check", "data preview", "align", "align report", "domain", "domain list"),
    *("domain show", "domain glossary", "domain new", "memory", "memory plan"),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_narrow_terminal_and_has_an_example(command, domainclip, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = domainclip(*command.split(), "--help")
    assert result.exit_code == 0
    assert max(map(len, result.out.splitlines())) <= 80
    if command not in ("config", "data", "align", "domain", "memory"):  # groups of commands
        assert "domainclip " + command in " ".join(result.out.replace("│", " ").split())


def test_a_key_is_explained_with_type_range_and_default(domainclip) -> None:
    result = domainclip("config", "show", "lr", "precision", "machine", "learning_rate=1e-4")
    assert result.exit_code == 0
    text = " ".join(result.out.split())
    for words in ("learning_rate: Peak rate", "a number above 0", "default 5e-05", "here 0.0001 (set)"):
        assert words in text
    assert "one of fp32, bf16, fp16, or null" in text
    assert "num_workers" in text
    assert "weight_decay" not in text
    wrong = domainclip("config", "show", "learning_rat")
    assert wrong.exit_code == 2
    assert "did you mean 'learning_rate'?" in wrong.err


def test_tables_of_keys_and_domains_cut_no_word_at_80_columns(domainclip, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in ("config show", "domain show medical"):
        shown = domainclip(*command.split()).out
        assert "…" not in shown.replace("(patient…)", "").replace("medical, …", "")
        assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.slowest
def test_the_memory_of_known_shapes_needs_no_network(domainclip, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for model in ((), ("--model", "openai/clip-vit-base-patch32")):
        assert domainclip("memory", "plan", *model, "--budget", "16GB", "--device", "cpu").exit_code == 0


def test_a_check_of_data_ends_with_the_next_command(domainclip, tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = f"a table with a name that is longer than a terminal is wide, {'x' * 60}.csv"
    (tmp_path / name).write_text("image_path,caption\n" + "".join(f"{tmp_path}/{n}.png,{n}\n" for n in range(3)))
    bad = domainclip("data", "check", tmp_path / name, "seed=3")
    assert bad.exit_code == 1
    assert name in bad.out
    assert bad.out.splitlines()[-1].startswith("Next: mend the errors")
    good = domainclip("data", "check", tiny_data.folder, "--domain", "medical", "seed=3")
    assert good.exit_code == 0
    following = f"domainclip train --data {tiny_data.folder} --model vit-b-32 --domain medical seed=3"
    assert good.out.splitlines()[-1] == f"Next: {following}"
