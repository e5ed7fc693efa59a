"""What makes two runs the same run: the recipe's keys that change what is learned, and the training rows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.data.dataset import CLIPDataset
from domainclip.errors import CheckpointError, ConfigurationError

NEUTRAL_KEYS = frozenset(name for name, facts in facts_by_key(CLIPFinetuningConfig) if not facts.changes_weights)
"""Keys that may differ between a run and its resumption: by themselves they change nothing that is learned."""


LENGTH_KEYS = ("num_epochs", "max_steps")
"""Keys that may differ as well, where what is done already is not undone by it: the run then has another schedule."""


def recipe_digest(recipe: dict[str, Any], domain: str | None = None) -> str:
    """SHA-256 of a recipe's values, without ``NEUTRAL_KEYS``. ``domain``: the digest of the domain's content, which
    counts in place of its name or path: the file may move.

    Args:
        recipe: plain values by key.
        domain: digest of the domain's content, which counts in place of its name or path.

    Returns:
        The digest in hexadecimal digits.
    """
    kept = {key: value for key, value in recipe.items() if key not in NEUTRAL_KEYS}
    if domain is not None:
        kept["domain"] = domain
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def data_fingerprint(dataset: CLIPDataset) -> str:
    """Name the training rows in their order: images' paths below their common folder, captions, groups.

    The folder itself may move. The images' bytes are not read: that would cost as much as an epoch.

    Args:
        dataset: The training rows.

    Returns:
        SHA-256 of them.
    """
    paths = [pair.image_path for pair in dataset.pairs]
    try:
        base = os.path.commonpath({str(path.parent) for path in paths})
    except ValueError:  # several drives, or absolute and relative paths together
        base = ""
    rows = [
        [path.relative_to(base).as_posix() if base else path.as_posix(), pair.caption, group]
        for path, pair, group in zip(paths, dataset.pairs, dataset.group_ids.tolist(), strict=True)
    ]
    content = json.dumps([rows, dataset.texts], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def check_same_run(facts: Sequence[tuple[str, str, int, str | None, str | None]]) -> None:
    """Compare what several processes are about to train.

    Args:
        facts: Of each process: digest of the recipe, digest of the training rows, step, digest of the weights it keeps
            near, digest of the rows it rehearses.

    Raises:
        ConfigurationError: They are not all alike.
    """
    for index, what in enumerate(("recipes", "training rows", "checkpoints", "initial weights", "rehearsed rows")):
        if len({each[index] for each in facts}) > 1:
            raise ConfigurationError(
                f"The {len(facts)} processes have different {what}: start them with the same command, data and "
                "output_dir, in a folder that all of them share"
            )


@dataclass(frozen=True)
class RunIdentity:
    """By what a run knows its own checkpoints.

    Attributes:
        recipe: Digest of the recipe's keys that change what is learned.
        data: Digest of the training rows.
        start: Digest of the initial weights, where the training is held near them.
        rehearsal: Digest of the rehearsed rows, where there are any.
        settings: The recipe itself, to name the keys that differ.
        domain: Digest of the domain's content.
    """

    recipe: str
    data: str
    start: str | None
    rehearsal: str | None
    settings: dict[str, Any]
    domain: str | None

    @classmethod
    def of(
        cls,
        recipe: dict[str, Any],
        data: CLIPDataset,
        start: str | None = None,
        rehearsal: str | None = None,
        domain: str | None = None,
    ) -> RunIdentity:
        """Name a run.

        Args:
            recipe: Plain values of its resolved recipe by key.
            data: Its training rows.
            start: Digest of the initial weights.
            rehearsal: Digest of the rehearsed rows.
            domain: Digest of the content of the recipe's domain, which counts in place of its name.

        Returns:
            Its identity.
        """
        return cls(recipe_digest(recipe, domain), data_fingerprint(data), start, rehearsal, recipe, domain)

    def facts(self, step: int) -> tuple[str, str, int, str | None, str | None]:
        """What ``check_same_run`` compares.

        Args:
            step: The one the run is at.

        Returns:
            Digests of recipe and rows, the step, digests of initial weights and rehearsed rows.
        """
        return self.recipe, self.data, step, self.start, self.rehearsal

    @property
    def digest(self) -> str:
        """One SHA-256 of all but the settings, which the recipe's digest stands for."""
        facts = [self.recipe, self.data, self.start, self.rehearsal, self.domain]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of it.

        Returns:
            All attributes in plain values.
        """
        return asdict(self)

    def lengthened(self, saved: dict[str, Any]) -> list[str]:
        """The keys by which this run has another length than the one that it goes on with.

        Args:
            saved: ``state_dict()`` of the run that saved a checkpoint.

        Returns:
            Their names.
        """
        return [key for key in LENGTH_KEYS if saved["settings"].get(key) != self.settings.get(key)]

    def check(self, saved: dict[str, Any], folder: Path, model_name: str, accept_changed_data: bool = False) -> None:
        """Refuse a checkpoint of another run.

        Args:
            saved: ``state_dict()`` of the run that saved it.
            folder: Of the run.
            model_name: Of the model that this run begins with.
            accept_changed_data: Whether the training rows may be others.

        Raises:
            CheckpointError: It is of another recipe, of other rows or of other initial weights.
        """
        checkpoints = folder / "checkpoints"
        if saved["recipe"] != self.recipe:
            before, now = saved["settings"], self.settings
            changed = [key for key in now if key not in NEUTRAL_KEYS | {"domain"} and before.get(key) != now[key]]
            if saved["domain"] != self.domain:
                changed.append("domain")
            if not {*changed} <= {*LENGTH_KEYS}:
                raise CheckpointError(
                    f"The checkpoint in {checkpoints} is of another recipe (different: {', '.join(changed)}). Resume "
                    "with the recipe.yaml of the run, or use another output_dir"
                )
        if saved["data"] != self.data and not accept_changed_data:
            raise CheckpointError(
                f"The checkpoint in {checkpoints} was trained on other rows (images, captions, groups or their "
                "order have changed since). Resume with the data of the run, go on with these "
                "(accept_changed_data=True), or use another output_dir"
            )
        if saved["rehearsal"] != self.rehearsal:
            raise CheckpointError(
                f"The run in {folder} rehearses other rows than this one: retention_data or retention_rows "
                "has changed, or the data there. Resume with those of the run, or use another output_dir"
            )
        if self.start is not None and saved["start"] not in (None, self.start):
            raise CheckpointError(
                f"The run in {checkpoints} started from other weights than {model_name or 'this model'} "
                "has now, and what it keeps of them is measured against those. Resume from the model it started from"
            )
