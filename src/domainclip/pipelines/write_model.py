"""Writing the trained model where users look for it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from domainclip.domains.domain import DomainConfig
from domainclip.domains.recipes import write_domain
from domainclip.errors import CheckpointError
from domainclip.files import replaced_directory
from domainclip.models import DualEncoder
from domainclip.training.checkpoint import recover_directory


def write_model(encoder: DualEncoder, folder: Path, domain: DomainConfig) -> None:
    """``folder/model`` with its domain, whole or as it was. Raises ``CheckpointError`` when it cannot be written."""
    recover_directory(folder / "model")
    try:
        with replaced_directory(folder / "model") as temporary:
            encoder.save(temporary)
            write_domain(domain, temporary)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"The trained model could not be written to {folder / 'model'}: {error}. Its last checkpoint is in "
            f"{folder / 'checkpoints'}: free some space and resume"
        ) from error
