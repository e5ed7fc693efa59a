"""One run resolves its recipe once, and reads its domain's file once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domainclip import CLIPFinetuningConfig, run_training
from domainclip.domains import files
from domainclip.resolve.draft import Draft
from tiny_data import TinyData

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("auto_resolution", [False, True])
def test_a_run_resolves_once(
    auto_resolution: bool, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = tmp_path / "walls.yaml"
    domain.write_text("name: walls\nextends: industrial\nimages: {illumination: grey_world}\n", encoding="utf-8")
    drafts: list[str] = []
    read: list[str] = []
    begin, read_text = Draft.of, files.read_yaml_text

    def counted_draft(config: CLIPFinetuningConfig, *rest: Any) -> Draft:
        drafts.append(config.domain)
        return begin(config, *rest)

    def counted_read(path: Path, *rest: Any) -> str:
        read.append(Path(path).name)
        return read_text(path, *rest)

    monkeypatch.setattr(Draft, "of", counted_draft)
    monkeypatch.setattr(files, "read_yaml_text", counted_read)
    config = CLIPFinetuningConfig(
        model_name="tiny",
        domain=str(domain),
        data_path=str(tiny_data.folder),
        output_dir=str(tmp_path / "out"),
        device="cpu",
        max_steps=2,
        batch_size=6,
        loss_type="domain_specific",
        auto_resolution=auto_resolution,
    )
    run_training(config, console=Console(quiet=True))
    assert drafts == [str(domain)]
    assert read.count("walls.yaml") == 1
