"""What is wrong with a domain, and domains in recipes, commands and runs."""

from __future__ import annotations

import json
import pickle
import shutil

import pytest
import yaml

from domain_config_cases import _resolved, write
from domainclip.config import CLIPFinetuningConfig, load_recipe
from domainclip.config.glossary import load_glossary
from domainclip.domains.domain import RECIPE_SECTIONS
from domainclip.domains.files import domain_family, load_domain, shipped_domains
from domainclip.domains.layers import DomainLayer
from domainclip.domains.recipes import with_models_domain, write_domain
from domainclip.errors import ConfigurationError
from domainclip.pipelines import CLIPFinetuningController
from domainclip.resolve import DataFacts, ModelFacts, resolve, resolve_for_inference
from resolve_cases import CLIP, PLAIN

pytestmark = pytest.mark.slow

# --- errors ---


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: x\nimges: {}\n", 2, "Unknown key 'imges': did you mean 'images'"),
        (
            "images:\n  page: first\n  crop_bordr: dark\n",
            3,
            "images: Unknown key 'crop_bordr': did you mean 'crop_border'",
        ),
        ("images:\n  crop_border: bright\n", 2, "Invalid border crop 'bright'"),
        ("texts:\n  truncate: tokens\n", 2, "did you mean 'truncation'"),
        ("prompts:\n  templates:\n    - a photo\n", 2, "must contain {} exactly once"),
        (
            "training:\n  num_epochs: 3\n  learning_rat: 1\n",
            3,
            "training: Unknown key 'learning_rat': did you mean 'learning_rate'",
        ),
        ("training:\n  learning_rate: -1\n", 2, "Learning rate must be positive"),
        ("training:\n  horizontal_flip: true\n", 2, "belongs in the section 'augmentation'"),
        ("training:\n  data_path: here\n", 2, "belongs to a run, its data or its machine"),
        ("evaluation:\n  prompt_templates: ['{}']\n", 2, "'templates' in the section 'prompts'"),
        ("training:\n  lock_image: true\n  lock_text: true\n", None, "leave nothing to train"),
        ("loss:\n  min_temp: 0.5\n  max_temp: 0.1\n", None, "is above max_temp"),
        ("family: dental\n", 1, "Invalid family 'dental'"),
        ("training: 3\n", 1, "The section 'training' holds 'key: value' lines, not 3"),
        ("name: [a]\n", 1, "'name' is a text"),
        ("training:\n  learning_rate: {because: x}\n", 2, "is written {value: …, because"),
        ("training:\n  learning_rate: {value: 1, because: ''}\n", 2, "is written {value: …, because"),
        ("training:\n  num_epochs: 1\n  num_epochs: 2\n", 3, "'num_epochs' stands twice (first on line 2)"),
        ("images: [\n", 2, "not valid YAML"),
        ("name: x\nimages: &a\n  page: *a\n", 2, "contains itself"),
        ("prompts:\n  <<: &a\n    templates: [*a]\n", 2, "contains itself"),
        ("just words\n", None, "key: value"),
        ("extends: medicin\n", 1, "Invalid domain 'medicin': did you mean 'medical'"),
        ("extends: gone.yaml\n", 1, "there is no such file"),
        ("texts:\n  glossary: no_such.yaml\n  expand_abbreviations: true\n", 2, "no_such.yaml does not exist"),
    ],
)
def test_errors_name_file_line_and_key(tmp_path, text, line, words):
    path = write(tmp_path, "mine.yaml", text)
    with pytest.raises(ConfigurationError) as caught:
        load_domain(path)
    message = str(caught.value)
    assert words in message
    if line is not None:
        assert f"{path} line {line}" in message
    with pytest.raises(ValueError, match=r"mine\.yaml|leave nothing|above max_temp"):
        resolve_for_inference(CLIPFinetuningConfig(domain=str(path)))


def test_an_inherited_error_is_reported_where_it_stands(tmp_path):
    base = write(tmp_path, "base.yaml", "\n\nimages: {page: last}\n")
    with pytest.raises(ConfigurationError, match=rf"Invalid page 'last'.*{base.name} line 3"):
        load_domain(write(tmp_path, "top.yaml", "extends: base.yaml\n"))


def test_domains_in_a_circle(tmp_path):
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: c.yaml\n")
    write(tmp_path, "c.yaml", "extends: b.yaml\n")
    with pytest.raises(ConfigurationError, match=r"in a circle \(b.yaml → c.yaml → b.yaml\)"):
        load_domain(tmp_path / "a.yaml")
    with pytest.raises(ConfigurationError, match=r"in a circle \(self.yaml → self.yaml\)"):
        load_domain(write(tmp_path, "self.yaml", "extends: self.yaml\n"))


def test_names_that_are_no_domain(tmp_path):
    with pytest.raises(ValueError, match=r"^Invalid domain 'medicine': did you mean 'medical'"):
        CLIPFinetuningConfig(domain="medicine")
    with pytest.raises(ValueError, match=r"^Invalid domain 'space': choose one of general, industrial"):
        CLIPFinetuningConfig(domain="space")
    with pytest.raises(ValueError, match=r"^Invalid domain 'gone/x.yaml': there is no such file"):
        CLIPFinetuningConfig(domain="gone/x.yaml")


def test_layers_with_yaml_anchors_and_odd_keys():
    layer = DomainLayer.from_text(
        "prompts:\n  class_names: &n {no: [a], 1: [b]}\ntraining:\n  <<: {num_epochs: 2}\n", "f"
    )
    assert layer.values["prompts"]["class_names"] == {"no": ["a"], "1": ["b"]}
    assert layer.values["training"] == {"num_epochs": 2}
    assert layer.place(("training", "num_epochs")) in ("f line 3", "f line 4")


def test_a_domain_lies_between_the_defaults_and_what_is_set(tmp_path):
    path = write(
        tmp_path,
        "mine.yaml",
        "name: teeth\nextends: medical\n"
        'training:\n  learning_rate: {value: 1e-6, because: "few"}\n'
        "loss: {label_smoothing: 0.2}\nevaluation: {bootstrap_resamples: 50}\n",
    )
    recipe, reasons = _resolved(CLIPFinetuningConfig(domain=str(path), num_epochs=2))
    assert (recipe.learning_rate, recipe.num_epochs, recipe.label_smoothing) == (1e-6, 2, 0.2)
    assert (recipe.evaluation_metrics, recipe.bootstrap_resamples) == ("medical", 50)
    assert reasons["learning_rate"] == "preset of the domain teeth: few"
    assert "num_epochs" not in reasons
    assert reasons["label_smoothing"] == "preset of the domain teeth"


def test_the_family_decides_the_objective(tmp_path):
    from domainclip.losses import build_loss

    path = write(tmp_path, "teeth.yaml", "extends: medical\n")
    assert domain_family(str(path)) == "medical"
    loss = build_loss(CLIPFinetuningConfig(domain=str(path), loss_type="domain_specific"))
    assert loss.domain == "medical"


def test_a_resolved_run_keeps_its_domain(tmp_path):
    path = write(tmp_path, "mine.yaml", "images: {page: mean}\n")
    run = resolve(CLIPFinetuningConfig(domain=str(path)), CLIP, PLAIN)
    path.unlink()
    assert run.domain.images.page == "mean"
    assert pickle.loads(pickle.dumps(run)).domain.images.page == "mean"
    assert run.objective.family == "general"


def test_a_recipe_finds_the_domain_beside_it(tmp_path, monkeypatch):
    write(tmp_path, "mine.yaml", "training: {num_epochs: 7}\n")
    recipe = write(tmp_path, "recipe.yaml", "domain: mine.yaml\n")
    monkeypatch.chdir("/")
    assert load_recipe(recipe, environment={}).domain == str(tmp_path / "mine.yaml")
    assert _resolved(load_recipe(recipe, environment={}))[0].num_epochs == 7


@pytest.mark.parametrize("name", ["medical", "industrial", "scientific"])
def test_the_recipe_of_a_domains_name_is_the_domain(name):
    by_recipe, _ = _resolved(load_recipe(name, environment={}))
    by_domain, _ = _resolved(CLIPFinetuningConfig(domain=name))
    assert by_recipe.to_dict() == by_domain.to_dict()


# --- the command ---


def test_domain_list_and_show(domainclip, tmp_path):
    listed = json.loads(domainclip("domain", "list", "--json").out)
    assert [row["name"] for row in listed] == shipped_domains()
    assert all(row["name"] in domainclip("domain", "list").out for row in listed)
    shown = json.loads(domainclip("domain", "show", "medical", "--json").out)
    assert {choice["key"] for choice in shown["choices"]} == {choice.key for choice in load_domain("medical").choices()}
    assert all(choice["because"] for choice in shown["choices"])
    table = " ".join(domainclip("domain", "show", "medical").out.split())
    assert "training.learning_rate" in table and "3e-05" in table
    wrong = domainclip("domain", "show", "medicine")
    assert wrong.exit_code == 2 and "Invalid domain 'medicine': did you mean 'medical'" in wrong.err
    path = write(tmp_path, "mine.yaml", "images: {clae: 1}\n")
    assert "mine.yaml line 1" in domainclip("domain", "show", path).err


@pytest.mark.parametrize("parent", ["general", "medical", "industrial", "scientific"])
def test_domain_new_writes_a_file_that_is_valid_and_changes_nothing(domainclip, tmp_path, monkeypatch, parent):
    monkeypatch.chdir(tmp_path)
    assert domainclip("domain", "new", "mine", "--extends", parent).exit_code == 0
    path = tmp_path / "mine.yaml"
    fresh = load_domain(path)
    assert fresh.digest() == load_domain(parent).digest()
    assert fresh.recipe_values() == load_domain(parent).recipe_values()
    # With every # of a section and of its inherited or plainly written keys taken off, it still says the same.
    text = path.read_text(encoding="utf-8")
    lines = [
        line[1:] if line[:3] == "#  " or (line[:1] == "#" and line[1:2].isalpha()) else line
        for line in text.split("\n")
    ]
    kept = [line for line in lines if line.endswith("# inherited") or (line[:1].isalpha() and "extends" not in line)]
    opened = load_domain(write(tmp_path, "opened.yaml", "\n".join(kept)))
    assert opened.extends == []
    assert opened.recipe_values() == load_domain(parent).recipe_values()
    assert {c.key: c.because for c in opened.choices()} == {c.key: c.because for c in load_domain(parent).choices()}
    again = domainclip("domain", "new", "mine")
    assert again.exit_code == 2 and "would be overwritten" in again.err
    assert path.read_text(encoding="utf-8") == text


def test_every_key_of_the_template_is_a_key(domainclip, tmp_path):
    """Each commented line, taken alone, is accepted in its section."""
    target = tmp_path / "mine.yaml"
    assert domainclip("domain", "new", "mine", "--output", target).exit_code == 0
    section, checked = "", 0
    for line in target.read_text(encoding="utf-8").split("\n"):
        if line.startswith("#") and not line.startswith(("# ", "#  ")):
            section = line[1:].partition(":")[0]
        elif line.startswith("#  ") and section:
            key = line[3:].partition(":")[0]
            load_domain(write(tmp_path, "one.yaml", f"{section}:\n  {line[3:]}\n"))
            assert section in RECIPE_SECTIONS or key in type(getattr(load_domain("general"), section)).model_fields
            checked += 1
    assert checked > 50


def test_domain_new_from_a_file_elsewhere_and_what_it_refuses(domainclip, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "base.yaml", "training: {num_epochs: 9}\n")
    monkeypatch.chdir(tmp_path)
    assert domainclip("domain", "new", "x", "--extends", "base.yaml", "--output", "sub/x.yaml").exit_code == 0
    assert load_domain(tmp_path / "sub/x.yaml").recipe_values() == {"num_epochs": 9}
    assert "name of a shipped domain" in domainclip("domain", "new", "medical").err
    assert "must end in .yaml" in domainclip("domain", "new", "y", "--output", "y.txt").err
    assert "cannot be the name of a file" in domainclip("domain", "new", "a/b").err
    assert "Invalid domain 'nothing'" in domainclip("domain", "new", "y", "--extends", "nothing").err
    assert not (tmp_path / "y.yaml").exists()


# --- a run ---


def test_a_run_and_its_model_carry_their_domain(domainclip, tiny_data, tmp_path):
    data, folder = tmp_path / "data", tmp_path / "out"
    shutil.copytree(tiny_data.folder, data)
    write(tmp_path, "words.yaml", "abbreviations:\n  GR: grass\n")
    own = (
        "name: walls\nextends: industrial\ntraining: {weight_decay: 0.03}\nevaluation: {bootstrap_resamples: 0}\n"
        "texts: {glossary: words.yaml}\nimages: {illumination: grey_world}\n"
    )
    path = write(tmp_path, "own.yaml", own)
    options = ["train", "-r", "debug", "-d", data, "-o", folder, "--domain", path, "device=cpu", "max_steps=1"]
    assert domainclip(*options).exit_code == 0
    kept, model = load_domain(folder / "domain.yaml"), load_domain(folder / "model" / "domain.yaml")
    assert kept.name == "walls" and kept.digest() == model.digest() == load_domain(path).digest()
    saved = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert (saved["domain"], saved["weight_decay"]) == ("domain.yaml", 0.03)
    assert json.loads((folder / "report.json").read_text(encoding="utf-8"))["domain"] == "walls"

    # In another domain it does not go on.
    write(tmp_path, "own.yaml", own.replace("grey_world", "divide"))
    changed = domainclip(*options, "--resume")
    assert changed.exit_code == 2
    assert "another recipe (different: domain)" in changed.err

    # The folder is moved, and the files it was made from are gone.
    moved = tmp_path / "elsewhere"
    folder.rename(moved)
    path.unlink()
    (tmp_path / "words.yaml").unlink()
    resumed = domainclip("train", "-o", moved, "--resume")
    assert resumed.exit_code == 0, resumed.err
    assert load_domain(moved / "domain.yaml").digest() == kept.digest()

    # Its model is used in the domain that it was trained in, unless the user names one.
    start = CLIPFinetuningConfig(model_name=str(moved / "model"))
    _, domain, note = with_models_domain(start)
    assert domain.digest() == kept.digest() and note is not None and "walls" in note
    chosen = start.updated(domain="general")
    named, domain, note = with_models_domain(chosen)
    assert (named, domain.name, note) == (chosen, "general", None)
    controller = CLIPFinetuningController(start)
    controller.setup()
    assert controller.session.domain.images.illumination == "grey_world"


def test_a_model_of_a_shipped_domain_names_it(tmp_path):
    for name in shipped_domains():
        (tmp_path / name).mkdir()
        write_domain(load_domain(name), tmp_path / name)
        found, domain, note = with_models_domain(CLIPFinetuningConfig(model_name=str(tmp_path / name)))
        assert found.domain == domain.name == name
        assert (note is None) == (name == "general")


def test_a_domain_may_say_what_reference_sets_allow(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {max_forgetting: 0.01, retention_rows: 50}\n")
    assert load_domain(path).recipe_values() == {"max_forgetting": 0.01, "retention_rows": 50}
    model = ModelFacts(224, 77, False, "transformer", "transformer", 0.07)
    rows = DataFacts(300, 0.0, 0.0, 0, False, 2)
    for sets in (None, ["other.csv"]):
        recipe = resolve(CLIPFinetuningConfig(domain=str(path), retention_data=sets), model, rows).recipe
        assert (recipe.max_forgetting, recipe.retention_rows) == (0.01, 50)
    assert resolve(CLIPFinetuningConfig(domain=str(path)), model, rows).recipe.max_forgetting == 0.01


def test_glossaries_are_printed_and_checked(domainclip: Any, tmp_path: Path) -> None:
    printed = domainclip("domain", "glossary", "medical")
    assert printed.exit_code == 0
    copy = tmp_path / "mine.yaml"
    copy.write_text(printed.out, encoding="utf-8")
    assert load_glossary(copy) == load_glossary("medical")
    checked = domainclip("domain", "glossary", copy)
    assert f"{len(load_glossary('medical').abbreviations)} abbreviations" in checked.out
    copy.write_text("abbreviations: {A: B, B: A}\n")
    wrong = domainclip("domain", "glossary", copy)
    assert wrong.exit_code == 2
    assert "mine.yaml line 1" in wrong.err
