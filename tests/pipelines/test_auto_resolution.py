"""``auto_resolution``: the resolution chosen from the images, the memory and the speed; and the batch that memory
holds."""

from __future__ import annotations

import copy
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, AutoModel

from commands import CommandResult
from domainclip import CLIPFinetuningConfig, CLIPFinetuningController
from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, MemoryConstraintError
from domainclip.models import load_encoder
from domainclip.models.facts import model_facts
from domainclip.pipelines import auto_resolution
from domainclip.pipelines.auto_resolution import measured_throughput, recorded_resolution, with_resolution
from domainclip.resolve import contrastive_batch, resolve
from domainclip.resolve.facts import data_facts
from domainclip.resolve.resolution import ResolutionRule
from domainclip.training.memory import model as memory_model
from domainclip.training.memory import plan as memory_plan
from domainclip.training.memory.model import MARGIN, SMALLEST_EFFICIENT
from domainclip.training.memory.plan import ModelShape, plan_step
from model_zoo import save_vision_text
from tiny_data import TinyData

pytestmark = pytest.mark.slow

VALUES: dict[str, Any] = {
    "model_name": "tiny",
    "batch_size": 6,
    "max_steps": 3,
    "num_workers": 0,
    "mixed_precision": False,
    "device": "cpu",
    "logging_steps": 1,
}
MB = 2**20


def ready(**values: Any) -> CLIPFinetuningController:
    config = CLIPFinetuningConfig(**{**VALUES, "auto_resolution": True, **values})
    made = CLIPFinetuningController(config, Console(quiet=True))
    made.setup()
    return made


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_data: TinyData) -> Path:
    """``tiny_data``'s training and validation rows with all images 24 pixels high and 30 wide: a model for 32 pixels
    has nothing to gain from enlarging them."""
    folder = tmp_path_factory.mktemp("small")
    rows = ["image_path,caption,label,split"]
    for split in ("train", "val"):
        for index, pair in enumerate(tiny_data.pairs(split)):
            name = f"{split}_{index}.png"
            Image.open(pair.image_path).resize((30, 24)).save(folder / name)
            rows.append(f'{name},"{pair.caption}",{pair.label},{split}')
    (folder / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def pairs_of(folder: Path, tiny_data: TinyData, split: str = "train") -> list[ImageTextPair]:
    return [
        ImageTextPair(folder / f"{split}_{index}.png", pair.caption, pair.label)
        for index, pair in enumerate(tiny_data.pairs(split))
    ]


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets what there is: the process holds 64 MiB, and so many bytes more are available."""

    def there_are(available: int) -> None:
        monkeypatch.setattr(memory_model, "held_bytes", lambda device: 64 * MB)
        monkeypatch.setattr(memory_model, "read_memory", lambda device: {"available_gb": available / 2**30})

    return there_are


# --- the memory ---


def needs(config: CLIPFinetuningConfig, pairs: list[ImageTextPair], held: int = 64 * MB) -> dict[int, float]:
    """Bytes at each side of the tiny model, from the plan of the shape by that name."""
    encoder = load_encoder(config)
    recipe = resolve(with_resolution(config, 32), model_facts(encoder), data_facts(pairs)).recipe
    weights = sum(tensor.nbytes for tensor in [*encoder.parameters(), *encoder.buffers()])
    batch, found = contrastive_batch(recipe), {}
    for resolution in (16, 24, 32):
        at_side = recipe.updated(image_resolution=resolution, precision="fp32")
        step = plan_step(ModelShape.named("tiny"), *[at_side] * 3, "cpu", held - weights)
        # Images that are kept decoded with the margin of their crops.
        cache = min(recipe.image_cache_mb * MB, int(len(pairs) * 3 * 2.2 / recipe.crop_scale * resolution**2))
        found[resolution] = (step.peak(min(SMALLEST_EFFICIENT, batch), batch) + cache) * MARGIN
    return found


def test_memory_lowers_the_resolution(tiny_data: TinyData, budget: Callable[[int], None]) -> None:
    pairs = tiny_data.pairs()
    config = CLIPFinetuningConfig(**{**VALUES, "auto_resolution": True, "batch_size": 16})
    need = needs(config, pairs)
    assert need[16] < need[24] < need[32]
    for fits, resolution in ((32, 32), (24, 24), (16, 16)):
        budget(int((need[fits] + 64 - 64 * MB) / 0.8) + 1)
        controller = ready(batch_size=16)
        recipe = controller.prepare(pairs)
        assert recipe.image_resolution == resolution, controller.decisions[0].reason
        assert f"{need[fits] / MB:.1f} MB of memory are needed" in controller.decisions[0].reason
    budget(int((need[16] - 64 * MB) / 0.8) - 1000)
    controller = ready(batch_size=16)
    controller.prepare(pairs)
    decision = controller.decisions[0]
    assert decision.value == 16 and "smallest resolution" in decision.reason and "though" in decision.reason
    budget(int((need[24] + 64 - 64 * MB) / 0.3) + 1)  # the recipe's fraction of it counts
    controller = ready(batch_size=16, memory_fraction=0.3)
    assert controller.prepare(pairs).image_resolution == 24


def test_a_memory_that_cannot_be_predicted_is_left_out(
    tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, budget: Any
) -> None:
    def unknown(*_: Any, **__: Any) -> None:
        raise MemoryConstraintError("its steps differ")

    budget(1)
    monkeypatch.setattr(memory_plan, "plan_step", unknown)
    controller = ready(batch_size=None)
    assert controller.prepare(tiny_data.pairs()).image_resolution == 32
    assert "memory" not in controller.decisions[0].reason
    assert "leaves the memory out of account: its steps differ" in caplog.text
    monkeypatch.setattr("domainclip.devices.memory.read_memory", lambda device: {"available_gb": 10.0})
    assert controller.determine_batch_size() == 64  # (8 GB − 151,277,313 · 16 B) / 72 MiB is 81
    assert "its steps differ" in caplog.messages[-1]


# --- the speed ---


class Clock:
    """Says how long each pass took."""

    def __init__(self, *seconds: float) -> None:
        self.times = itertools.accumulate(itertools.chain.from_iterable((0.0, length) for length in seconds))

    def perf_counter(self) -> float:
        return next(self.times)


def test_speed_is_the_median_of_three_after_a_warm_up(monkeypatch: pytest.MonkeyPatch, tiny_data: TinyData) -> None:
    controller = ready()
    recipe = controller.prepare(tiny_data.pairs())
    encoder, seen = controller.model, []
    hooks = [
        encoder.model.vision_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(tuple(kwargs["pixel_values"].shape)), with_kwargs=True
        ),
        encoder.model.visual_projection.weight.register_hook(lambda gradient: seen.append("backward")),
    ]
    monkeypatch.setattr(auto_resolution, "time", Clock(10, 1, 4, 2))
    rate = measured_throughput(encoder, 24, controller.device, controller.session.precision, recipe)
    assert rate == pytest.approx(SMALLEST_EFFICIENT / 2)
    assert seen == [(SMALLEST_EFFICIENT, 3, 24, 24), "backward"] * 4
    seen.clear()
    monkeypatch.setattr(auto_resolution, "time", Clock(10, 8, 8, 8))
    locked = recipe.updated(lock_image=True).frozen()
    assert measured_throughput(encoder, 24, controller.device, controller.session.precision, locked) == pytest.approx(
        1.0
    )
    assert seen == [(SMALLEST_EFFICIENT, 3, 24, 24)] * 4  # what is not trained is not sent backward
    for hook in hooks:
        hook.remove()


def test_measuring_changes_nothing(tmp_path: Path, tiny_data: TinyData) -> None:
    """Batch norm with the batch's statistics (the untouched state has them, so that a pass would change it)."""
    model = save_vision_text(tmp_path / "model", tmp_path / "parts", "mobilenet")
    controller = ready(model_name=str(model), wanted_throughput=1e9, probe_first=False)
    encoder = controller.model
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    encoder.eval()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    numbers = (torch.get_rng_state(), copy.deepcopy(np.random.get_state()), random.getstate())
    controller.prepare(tiny_data.pairs())
    assert "1000000000 wanted" in controller.decisions[0].reason  # it was measured
    assert not controller.recipe.freeze_batch_norm  # with live statistics
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert not encoder.training and all(parameter.grad is None for parameter in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert random.getstate() == numbers[2]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numbers[1], strict=True))


def test_speed_lowers_the_resolution(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def rate(encoder: Any, resolution: int, *_: Any) -> float:
        asked.append(resolution)
        return 3200 / resolution

    monkeypatch.setattr(auto_resolution, "measured_throughput", rate)
    controller = ready()
    controller.prepare(tiny_data.pairs())
    assert controller.decisions[0].value == 32 and not asked  # nobody wants to know
    controller = ready(wanted_throughput=120)
    assert controller.prepare(tiny_data.pairs()).image_resolution == 24
    assert asked == [32, 24]
    reason = controller.decisions[0].reason
    assert "at 32, 100 images a second are expected and 120 wanted" in reason and "133.3" in reason


def test_a_tower_of_one_size_has_no_choice(tiny_data: TinyData) -> None:
    controller = ready(wanted_throughput=1e9)
    controller.model.resolution_rule = ResolutionRule(32)
    assert controller.prepare(tiny_data.pairs()).image_resolution == 32
    assert controller.decisions[0].reason == "the only resolution that this image tower takes"


# --- a run ---


def test_training_saves_a_model_of_the_chosen_resolution(small: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    controller = ready(wanted_throughput=0.001)
    train, val = pairs_of(small, tiny_data), pairs_of(small, tiny_data, "val")
    controller.fine_tune(train, val, tmp_path / "out")
    decision = next(made for made in controller.decisions if made.key == "image_resolution")
    assert decision.value == controller.recipe.image_resolution == 24
    assert "at most 24 pixels" in decision.reason and "0.001 wanted" in decision.reason
    assert not controller.recipe.auto_resolution and controller.recipe.wanted_throughput is None
    model = AutoModel.from_pretrained(tmp_path / "out" / "model")
    assert model.config.vision_config.image_size == 24
    assert AutoImageProcessor.from_pretrained(tmp_path / "out" / "model").crop_size["height"] == 24
    assert model.get_image_features(pixel_values=torch.zeros(1, 3, 24, 24)).pooler_output.shape == (1, 32)
    metrics = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert {row["resolution"] for row in metrics if "resolution" in row} == {24}
    assert controller.config.auto_resolution  # the user's recipe is as it was


def test_what_was_chosen_holds_until_something_else_is_asked(
    small: Path, tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = iter([100.0, 1.0, 1.0, 100.0])
    monkeypatch.setattr(auto_resolution, "measured_throughput", lambda *_: next(rates))
    controller = ready(wanted_throughput=50)
    train = pairs_of(small, tiny_data)
    assert [controller.prepare(train).image_resolution for _ in range(3)] == [24, 24, 24]
    controller.config.wanted_throughput = 60
    assert controller.prepare(train).image_resolution == 16  # 1.0 at 24, 1.0 at 16
    assert controller.prepare(train[:12]).image_resolution == 24  # other rows


def test_a_run_by_command_records_the_resolution_and_resumes_with_it(
    domainclip: Callable[..., CommandResult], small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    options = [f"{key}={value}" for key, value in VALUES.items() if key != "model_name"]
    asked = ["train", "--model", "tiny", "--data", small / "data.csv", "--output", out, *options]
    done = domainclip(*asked, "auto_resolution=true")
    assert done.exit_code == 0, done.err
    assert "image_resolution = 24  (95 % of the images" in done.err.replace("\n", " ")
    saved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (saved["image_resolution"], saved["auto_resolution"], saved["wanted_throughput"]) == (24, False, None)
    decisions = json.loads((out / "run.json").read_text())["decisions"]
    assert [made["key"] for made in decisions].count("image_resolution") == 1
    again = domainclip("train", "--output", out, "--resume")
    assert again.exit_code == 0, again.err
    assert "Resumed at step 3" in again.err


def test_a_run_that_goes_on_takes_the_resolution_it_had(
    small: Path, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With other figures on the day of the resumption, from ``recipe.yaml`` or from the checkpoint alone."""
    train = pairs_of(small, tiny_data)
    ready().fine_tune(train, output_path=tmp_path)
    monkeypatch.setattr(auto_resolution, "measured_throughput", lambda *_: 1.0)
    controller = ready(wanted_throughput=50)
    assert controller.prepare(train).image_resolution == 16
    assert not (tmp_path / "recipe.yaml").exists() and recorded_resolution(tmp_path) == 24
    assert controller.prepare(train, resume_from=tmp_path).image_resolution == 24
    assert controller.decisions[0].reason == "chosen when this run was first started"
    (tmp_path / "recipe.yaml").write_text("image_resolution: 32\n")
    assert controller.prepare(train, resume_from=tmp_path).image_resolution == 32
    assert recorded_resolution(tmp_path / "nothing") is None
    assert controller.prepare(train, resume_from=tmp_path / "nothing").image_resolution == 16


def test_no_readable_image_is_an_error(tmp_path: Path) -> None:
    rows = [ImageTextPair(tmp_path / f"{index}.png", f"caption {index}") for index in range(3)]
    with pytest.raises(DataError, match=r"3 training images, and 3 cannot be read: .*0\.png: no such file"):
        ready().prepare(rows)


# --- the batch ---


def test_the_batch_is_what_the_loaded_model_leaves_room_for(
    budget: Callable[[int], None], caplog: pytest.LogCaptureFixture
) -> None:
    controller = ready(batch_size=None, auto_resolution=False)
    encoder = controller.model
    weights = sum(tensor.nbytes for tensor in [*encoder.parameters(), *encoder.buffers()])
    recipe = CLIPFinetuningConfig(image_resolution=32, max_sequence_length=77, precision="fp32")
    step = plan_step(ModelShape.named("tiny"), *[recipe] * 3, "cpu", 64 * MB - weights)
    for available in (30 * MB, 60 * MB, 150 * MB, 400 * MB, 2**34):
        budget(available)
        most = 64 * MB + 0.8 * available
        fit = [size for size in (1, 2, 4, 8, 16, 32, 64, 128, 256) if step.peak(size, size) * MARGIN <= int(most)]
        assert controller.determine_batch_size() == max(fit)
    assert not caplog.messages
    budget(MB)
    assert controller.determine_batch_size() == 1
    assert "A single pair needs" in caplog.text


def test_without_a_model_the_batch_is_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("domainclip.devices.memory.read_memory", lambda device: {"available_gb": 10.0})
    fresh = CLIPFinetuningController(CLIPFinetuningConfig(device="cpu"))
    assert fresh.determine_batch_size() == 64  # (8 GB − 151,277,313 · 16 B) / 72 MiB is 81
    assert CLIPFinetuningController(CLIPFinetuningConfig(batch_size=7)).determine_batch_size() == 7
