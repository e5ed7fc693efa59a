"""Objectives and metrics of the user's own, as docs/adding-a-loss.md shows them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from domainclip.config import CLIPFinetuningConfig
from domainclip.errors import ConfigurationError
from domainclip.losses import LOSSES, build_loss
from domainclip.registry import load_plugins
from domainclip.similarity import SIMILARITIES

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-loss.md"


@pytest.fixture
def forgotten():
    """What a test registers is gone after it."""
    before = dict(LOSSES._entries), dict(SIMILARITIES._entries), set(sys.modules)
    yield
    LOSSES._entries, SIMILARITIES._entries = before[0], before[1]
    for name in set(sys.modules) - before[2]:
        if name.startswith(("domainclip_plugin_", "my_")):
            del sys.modules[name]


def example(contains: str) -> str:
    """The page's Python block with these words in it."""
    (found,) = [
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S) if contains in block
    ]
    return found


def test_the_pages_objective_trains_through_the_command(domainclip, tiny_data, tmp_path: Path, forgotten) -> None:
    plugin = tmp_path / "focal.py"
    plugin.write_text(example("LOSSES.register") + "\n" + example("SIMILARITIES.register"))
    result = domainclip(
        "train",
        "--data",
        tiny_data.folder,
        "--model",
        "tiny",
        "--output",
        tmp_path / "run",
        "loss_type=focal",
        "similarity_metric=laplacian",
        f"plugins=[{plugin}]",
        "max_steps=3",
        "batch_size=6",
        "num_workers=0",
        "mixed_precision=false",
    )
    assert result.exit_code == 0, result.err
    assert "plugins" in (tmp_path / "run" / "recipe.yaml").read_text()
    again = domainclip("train", "--output", tmp_path / "run", "--resume")
    assert again.exit_code == 0, again.err


def test_the_pages_objective_is_what_it_says(tmp_path: Path, forgotten) -> None:
    (tmp_path / "focal.py").write_text(example("LOSSES.register"))
    load_plugins([str(tmp_path / "focal.py")])
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    loss = build_loss(CLIPFinetuningConfig(loss_type="focal", temperature=0.5, learnable_temp=True))
    chance = (torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(y).T / 0.07).softmax(1).diagonal()
    expected = ((1 - chance) ** 2 * -chance.log()).mean()
    loss.temperature = 0.07
    assert float(loss(x, y)["image_to_text_loss"].detach()) == pytest.approx(float(expected), rel=1e-6)
    load_plugins([str(tmp_path / "focal.py")])  # once is enough


def test_a_module_of_the_working_directory(tmp_path: Path, monkeypatch, forgotten) -> None:
    (tmp_path / "my_metric.py").write_text(example("SIMILARITIES.register"))
    monkeypatch.chdir(tmp_path)
    load_plugins(["my_metric"])
    a, b = torch.randn(3, 2), torch.randn(4, 2)
    torch.testing.assert_close(SIMILARITIES["laplacian"](a, b), -torch.cdist(a, b, p=1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.py", None, "there is no file .*missing.py"),
        ("broken.py", "1 / 0", "ZeroDivisionError"),
        ("my_unknown_module", None, "ModuleNotFoundError"),
    ],
)
def test_a_plugin_that_cannot_be_imported(name, content, message, tmp_path: Path, monkeypatch, forgotten) -> None:
    monkeypatch.chdir(tmp_path)
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=f"plugins: .*{message}"):
        load_plugins([name])


def test_an_unknown_metric_is_told_even_with_plugins(tmp_path: Path, forgotten) -> None:
    config = CLIPFinetuningConfig(plugins=["json"], similarity_metric="manhattan")
    with pytest.raises(ConfigurationError, match=r"^Invalid metric 'manhattan'"):
        build_loss(config)
