"""A hundred and more wrong values, keys, paths and options through the command: exit code 2 and a short sentence."""

from __future__ import annotations

import re

import pytest

VALUES = {
    "learning_rate": [
        "-1",
        "0",
        "abc",
        "",
        "1,5",
        "1e-5,",
        "10%",
        "1e999",
        "nan",
        "inf",
        "[1]",
        "{a: 1}",
        "true",
        "None",
    ],
    "batch_size": ["0", "-4", "2.5", "many", "1,000", "1e30", "[8]", "8 8"],
    "num_epochs": ["0", "-1", "1.5", "ten", "None", "1e-4", "99999999999999999999"],
    "temperature": ["0", "-1", "warm"],
    "train_split": ["0", "1.5", "-0.1", "80%", "0,8"],
    "val_split": ["1", "-0.1"],
    "warmup_steps": ["-1", "0.5", "few"],
    "weight_decay": ["-1", "x"],
    "image_resolution": ["15", "4097", "224x224", "[224, 224]"],
    "max_sequence_length": ["3", "x"],
    "seed": ["-1", "4294967296", "1.5", "random"],
    "num_workers": ["-1", "129", "auto"],
    "crop_scale": ["0", "1.1"],
    "precision": ["float", "8", "FP32"],
    "optimizer": ["adam", "sgd"],
    "device": ["gpu", "tpu", "0"],
    "loss_type": ["contrastiv", "''"],
    "domain": ["medicine", "''"],
    "similarity_metric": ["cosin"],
    "augment_images": ["maybe", "2", "None", "[]"],
    "prompt_templates": ["[]", "['no place']", "['{} and {}']", "photo"],
    "target_modules": ["q_proj", "[q_proj]"],
    "lora_r": ["0", "-1", "1.5"],
    "lora_dropout": ["1", "-0.1"],
    "ema_fraction": ["1", "-0.1"],
    "layer_decay": ["0", "1.5"],
    "memory_fraction": ["0", "2"],
    "hard_negative_ratio": ["-0.5", "1.5"],
    "temperature_schedule_type": ["linear"],
    "training_resolutions": ["big", "[]"],
    "retention_data": ["[nowhere.csv]"],
    "evaluators": ["[nothing_like_it]"],
    "primary_metric": ["''"],
    "output_dir": ["''"],
    "model_name": ["''"],
    "data_path": ["''"],
    "caption_col": ["''"],
    "use_mps": ["perhaps"],
    "max_image_pixels": ["0", "1e12"],
    "save_steps": ["0"],
    "image_preprocessing": ["3", "{unknown: 1}"],
    "text_preprocessing": ["{glossary: nowhere}"],
}
CONTRADICTIONS = [
    ("lock_image=true", "lock_text=true"),
    ("target_modules=[q_proj]",),
    ("train_split=0.5",),
    ("attention_slice_size=64", "attention=eager"),
    ("wanted_throughput=10",),
    ("auto_resolution=true", "image_resolution=224"),
    ("learning_rate=1e-5", "learning_rate=1e-4"),
    ("learning_rate=1e-5", "learning-rate=1e-4"),
]
OPTIONS = [
    ("--split", "training"),
    ("--device", "gpu"),
    ("--trials", "0"),
    ("--trials", "many"),
    ("--space", "nowhere.yaml"),
    ("--search", "learning_rate"),
    ("--resolutions", "a,b"),
    ("--recipe",),
]


def refused(result) -> None:
    assert result.exit_code == 2, (result.exit_code, result.out[-300:], result.err[-300:])
    assert result.out == ""
    message = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.err).split()).rpartition("Error: ")[2]
    assert message
    assert len(message) < 600, message


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in VALUES.items() for value in values])
def test_a_wrong_value_names_its_key(key, value, domainclip, tiny_data, tmp_path) -> None:
    given = ("--model", "tiny") if key != "model_name" else ()
    given += ("--data", tiny_data.folder) if key != "data_path" else ()
    given += ("--output", tmp_path / "out") if key != "output_dir" else ()
    result = domainclip("train", *given, f"{key}={value}")
    refused(result)
    words = (
        key,
        key.replace("_", " "),
        "Number of epochs",
        "Invalid",
        "unknown",
        "nowhere",
        "nothing_like_it",
        "to 1",
        "template",
    )
    assert any(word.casefold() in result.err.casefold() for word in words), result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keys", CONTRADICTIONS, ids=" ".join)
def test_contradictions_name_both(keys, domainclip, tiny_data) -> None:
    result = domainclip("train", "--data", tiny_data.folder, "--model", "tiny", *keys)
    refused(result)
    assert any(key.partition("=")[0].replace("-", "_") in result.err for key in keys)


@pytest.mark.parametrize("option", OPTIONS, ids=" ".join)
def test_options_with_wrong_values(option, domainclip, tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = {"--trials": "tune", "--space": "tune", "--search": "tune", "--device": "doctor"}.get(
        option[0], "evaluate"
    )
    data = () if command == "doctor" else ("--data", tiny_data.folder, "--model", "tiny")
    refused(domainclip(command, *data, *option))


BAD_DATA = {
    "empty.csv": "",
    "header.csv": "image_path,caption\n",
    "blank.csv": "\n\n\n",
    "columns.csv": "a,b\n1,2\n",
    "missing.csv": "image_path,caption\nnowhere.png,a\nnowhere2.png,b\n",
    "quotes.csv": 'image_path,caption\na.png,"open\n',
    "empty.json": "[]",
    "words.json": "just words",
    "number.json": "3",
    "entries.json": "[1, 2]",
    "empty.jsonl": "\n",
    "broken.jsonl": '{"image": "a.png"\n',
    "words.parquet": "no parquet",
    "table.xlsx": "PK",
    "notes.docx": "PK",
    "archive.zip": "PK",
    "picture.png": "no picture",
    "weights.safetensors": "x",
    "none": "x",
}


@pytest.mark.parametrize("command", ["train", "evaluate", "data check"])
@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_are_named(name, command, domainclip, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(BAD_DATA[name])
    if command == "data check":
        result = domainclip("data", "check", name)
        assert result.exit_code in (1, 2)
        assert name in result.out + result.err
        return
    result = domainclip(command, "--data", name, "--model", "tiny")
    refused(result)
    assert name in result.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--output", "file"),
        ("--output", "file/below"),
        ("--data", "file", "--output", "out"),
        ("--data", "DATA", "--model", "DATA", "--output", "out"),
        ("--data", "DATA", "--model", "file", "--output", "out"),
        ("--data", "DATA", "--model", "empty", "--output", "out"),
        ("--data", "empty", "--output", "out"),
        ("--data", "DATA/train.csv/", "--output", "out"),
        ("--data", "", "--output", "out"),
        ("--data", "hf:", "--output", "out"),
        ("--recipe", "empty", "--data", "DATA", "--output", "out"),
        ("--recipe", "DATA/train.csv", "--data", "DATA", "--output", "out"),
        ("--domain", "empty", "--data", "DATA", "--output", "out"),
        ("--domain", "DATA/train.csv", "--data", "DATA", "--output", "out"),
        ("--resume", "--output", "empty"),
        ("--resume", "--overwrite", "--output", "empty"),
        ("--data", "DATA", "plugins=[nowhere.py]", "--output", "out"),
        ("--data", "DATA", "plugins=[nowhere_at_all]", "--output", "out"),
        ("--data", "DATA", "image_root=nowhere", "--output", "out"),
        ("--data", "DATA", "class_hierarchy=nowhere.yaml", "--output", "out"),
        ("--data", "DATA", "group_col=patientid", "--output", "out"),
        ("--data", "DATA", "loss_type=combined", "--output", "out"),
        ("--data", "DATA", "primary_metric=acc2", "--output", "out"),
    ],
    ids=" ".join,
)
def test_bad_paths_are_named(arguments, domainclip, tiny_data, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("the user's")
    (tmp_path / "empty").mkdir()
    arguments = tuple(each.replace("DATA", str(tiny_data.folder)) for each in arguments)
    model = () if "--model" in arguments else ("--model", "tiny")
    refused(domainclip("train", *model, *arguments))
    assert (tmp_path / "file").read_text() == "the user's"
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("learning_rate=1e-4", 1e-4),
        ("learning_rate=1E-4", 1e-4),
        ("learning_rate=.0001", 1e-4),
        ("learning_rate='1e-4'", 1e-4),
        ("learning-rate=0.0001", 1e-4),
        ("augment_images=yes", True),
        ("augment_images=on", True),
        ("augment_images=True", True),
        ("augment_images=1", True),
        ("augment_images=no", False),
        ("augment_images=off", False),
        ("augment_images=FALSE", False),
        ("batch_size=null", None),
        ("batch_size=None", None),
        ("batch_size=", None),
        ("batch_size=1_000", 1000),
        ("caption_col=yes", "yes"),
        ("caption_col='a b'", "a b"),
        ("output_dir=2024-01-01", "2024-01-01"),
        ("evaluators=[]", []),
    ],
)
def test_what_people_write_is_taken(written, value) -> None:
    from domainclip.config import CLIPFinetuningConfig, parse_overrides

    values = parse_overrides([written])
    (key,) = values
    assert getattr(CLIPFinetuningConfig(**values), key) == value


def test_this_list_is_long_enough() -> None:
    cases = sum(map(len, VALUES.values())) + len(CONTRADICTIONS) + len(OPTIONS) + 3 * len(BAD_DATA)
    assert cases > 150
