"""Names that packages promise are there, public, and lazily the same objects."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import domainclip

PACKAGES = [
    "domainclip",
    *sorted(f"domainclip.{module.name}" for module in pkgutil.iter_modules(domainclip.__path__) if module.ispkg),
]

PROMISED = {
    "domainclip": [
        "CLIPFinetuningConfig",
        "CLIPFinetuningController",
        "DeviceManager",
        "DomainConfig",
        "MemoryManager",
    ],
    "domainclip.config": ["CLIPFinetuningConfig"],
    "domainclip.domains": ["DomainConfig", "load_domain"],
    "domainclip.resolve": ["resolve"],
    "domainclip.errors": ["CLIPFinetuningError", "MPSCompatibilityError", "MemoryConstraintError"],
    "domainclip.data": [
        "CLIPDataset",
        "DatasetLoader",
        "ImageTransform",
        "MultiCaptionCLIPDataset",
        "MultiResolutionImageTransform",
        "PrefetchDataLoader",
        "TextTransform",
        "collate_fn",
        "create_dataloader",
        "create_train_val_dataloaders",
    ],
    "domainclip.losses": [
        "CLIPContrastiveLoss",
        "DomainSpecificLoss",
        "HardNegativeMiningLoss",
        "MultiScaleLoss",
        "TemperatureScheduler",
    ],
    "domainclip.alignment": ["AlignmentMetrics", "AlignmentVisualizer", "ImageTextRetrieval", "SimilarityComputer"],
    "domainclip.training": ["Trainer"],
    "domainclip.models": ["DualEncoder", "load_encoder"],
}


@pytest.mark.parametrize("name", PACKAGES)
def test_every_exported_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert len(exported) == len(set(exported))
    for member in exported:
        assert getattr(module, member) is not None, f"{name}.{member}"
        assert member == "__version__" or not member.startswith("_")


@pytest.mark.parametrize("name", PROMISED)
def test_promised_names_exist(name: str) -> None:
    module = importlib.import_module(name)
    for member in PROMISED[name]:
        assert hasattr(module, member), f"{name}.{member}"
        assert name == "domainclip.errors" or member in module.__all__


def test_lazy_names_are_the_things_themselves() -> None:
    from domainclip.config import CLIPFinetuningConfig
    from domainclip.pipelines import CLIPFinetuningController

    assert domainclip.CLIPFinetuningConfig is CLIPFinetuningConfig
    assert domainclip.CLIPFinetuningController is CLIPFinetuningController
    assert set(dir(domainclip)) >= set(domainclip.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        domainclip.Nothing
    with pytest.raises(ImportError):
        from domainclip import Nothing  # noqa: F401
