"""The domain that a run and its model carry with them, so that both can do without the file it came from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.base import Settings
from domainclip.domains.domain import DomainConfig
from domainclip.domains.files import DOMAIN_FILE, is_domain_path, load_domain, shipped_domains
from domainclip.files import write_text

Group = TypeVar("Group", bound=Settings)


def write_domain(domain: DomainConfig, folder: Path, name: str = DOMAIN_FILE) -> None:
    """The domain as a file of ``folder``, complete in itself."""
    write_text(folder / name, domain.to_yaml())


def recorded_recipe(values: dict[str, Any], name: str = DOMAIN_FILE) -> dict[str, Any]:
    """A recipe's values as they are written beside the domain's file: a path becomes that file's name."""
    return {**values, "domain": name} if is_domain_path(values.get("domain", "general")) else values


def with_models_domain(config: CLIPFinetuningConfig) -> tuple[CLIPFinetuningConfig, str | None]:
    """The recipe in the domain that its initial model was trained in, where the user named none, and a line that says
    so: images and captions are then prepared as they were in its training.

    Raises ``ConfigurationError`` where the model's ``domain.yaml`` is wrong.
    """
    kept = Path(config.model_name) / DOMAIN_FILE
    if config.is_set("domain") or not kept.is_file():
        return config, None
    domain = load_domain(kept)
    shipped = domain.name in shipped_domains() and _same(load_domain(domain.name), domain)
    if shipped and domain.name == config.domain:
        return config, None
    found = config.updated(domain=domain.name if shipped else str(kept))
    return found, f"Domain: {domain.name} (the model in {config.model_name} was trained in it; set domain to change it)"


def settings_of(config: CLIPFinetuningConfig, group: type[Group]) -> Group:
    """A group of the recipe's settings; what the recipe leaves unset is as the domain says."""
    preset = config.domain_config().recipe_values()
    return group(
        **{
            key: preset.get(key) if key in preset and not config.is_set(key) else getattr(config, key)
            for key in group.model_fields
        }
    )


def _same(one: DomainConfig, other: DomainConfig) -> bool:
    return one.digest() == other.digest() and one.recipe_values() == other.recipe_values()
