"""A domain together with a recipe: what both say of images and captions, and the domain that a run and its model carry
with them, so that both can do without the file it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domainclip.config import CLIPFinetuningConfig, DataSettings
from domainclip.config.domain_name import is_domain_path
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.config.text_preprocessing import TextPreprocessing
from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import DOMAIN_FILE, load_domain, shipped_domains
from domainclip.files import with_checksum, write_text


def image_steps(settings: DataSettings, domain: DomainConfig | None = None) -> ImagePreprocessing:
    """What is done to images before the resize.

    Args:
        settings: of the data; its ``image_preprocessing`` comes first.
        domain: the domain that the settings name, where it has been read already.

    Returns:
        The settings' own steps where they are set, else the domain's.

    Raises:
        ConfigurationError: the domain's file is gone or wrong.
    """
    return settings.image_preprocessing or (domain or load_domain(settings.domain)).images


def caption_steps(settings: DataSettings, domain: DomainConfig | None = None) -> TextPreprocessing:
    """What is done to texts before the tokenizer.

    Args:
        settings: of the data; its ``text_preprocessing`` comes first.
        domain: the domain that the settings name, where it has been read already.

    Returns:
        The settings' own steps where they are set, else the domain's.

    Raises:
        ConfigurationError: the domain's file is gone or wrong.
    """
    return settings.text_preprocessing or (domain or load_domain(settings.domain)).texts


def write_domain(domain: DomainConfig, folder: Path, name: str = DOMAIN_FILE) -> None:
    """Write the domain as a file of ``folder``, complete in itself.

    Args:
        domain: what to write.
        folder: where; it must be there.
        name: of the file.
    """
    write_text(folder / name, with_checksum(domain.to_yaml()))


def recorded_recipe(values: dict[str, Any], name: str = DOMAIN_FILE) -> dict[str, Any]:
    """A recipe's values as they are written beside the domain's file.

    Args:
        values: of a recipe, by key.
        name: of the domain's file.

    Returns:
        The values; a domain's path has become that file's name.
    """
    return {**values, "domain": name} if is_domain_path(values.get("domain", "general")) else values


def with_models_domain(
    config: CLIPFinetuningConfig,
) -> tuple[CLIPFinetuningConfig, DomainConfig, str | None]:
    """The recipe in the domain that its initial model was trained in, where the user named none: images and captions
    are then prepared as they were in its training.

    Args:
        config: the recipe as the user gave it.

    Returns:
        The recipe, the content of its domain, and a line that says where the domain comes from; None where the recipe
        itself names it, or nothing does.

    Raises:
        ConfigurationError: the file of the domain, or the model's ``domain.yaml``, is wrong.
    """
    kept = Path(config.model_name) / DOMAIN_FILE
    if config.is_set("domain") or not kept.is_file():
        return config, load_domain(config.domain), None
    domain = load_domain(kept)
    shipped = domain.name in shipped_domains() and _same(load_domain(domain.name), domain)
    if shipped and domain.name == config.domain:
        return config, domain, None
    found = config.updated(domain=domain.name if shipped else str(kept))
    note = f"Domain: {domain.name} (the model in {config.model_name} was trained in it; set domain to change it)"
    return found, domain, note


def _same(one: DomainConfig, other: DomainConfig) -> bool:
    return one.digest() == other.digest() and one.recipe_values() == other.recipe_values()
