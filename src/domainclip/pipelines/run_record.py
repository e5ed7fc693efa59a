"""What a run has on record beside its checkpoints: recipe, domain, data, decisions and what was measured before it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import torch
from rich.console import Console

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.config.located_yaml import yaml_text
from domainclip.config.recipe_files import parse_recipe
from domainclip.data.splits import DataSplits
from domainclip.domains.files import DOMAIN_FILE
from domainclip.domains.recipes import recorded_recipe, write_domain
from domainclip.errors import CheckpointError, DamagedFileError
from domainclip.events import Event, RunStarted
from domainclip.files import read_checked, read_record, with_checksum, write_record, write_text
from domainclip.inference import ModelSession
from domainclip.models.io import weights_digest
from domainclip.pipelines.data_record import DataRecord
from domainclip.pipelines.run_folder import RunFolder
from domainclip.reports.schema.base import jsonable
from domainclip.resolve import ResolvedRun
from domainclip.training.identity import LENGTH_KEYS, NEUTRAL_KEYS

T = TypeVar("T")


class RunRecord:
    """The record of a run, over its resumptions. It listens to the training, which may refuse a resumption.

    Args:
        folder: Of the run.
        session: The loaded model, with its initial weights.
        run: The resolved recipe.
        splits: The rows.
        console: Where it is said what was damaged or has changed.
    """

    def __init__(
        self, folder: RunFolder, session: ModelSession, run: ResolvedRun, splits: DataSplits, console: Console
    ) -> None:
        self.folder, self.session, self.run, self.splits, self.console = folder, session, run, splits, console
        self.goes_on = False
        self.notes: list[str] = []  # what the report says of files that were damaged
        self.recorded: dict[str, Any] | None = None  # the recipe on record, if the run goes on and it is whole
        self.initial_weights: str | None = None  # their digest at the run's first start
        self.earlier_s = 0.0  # what earlier starts took before they trained
        self.decisions: list[dict[str, Any]] = []
        self.data = DataRecord({}, {})
        self.threads = torch.get_num_threads()  # of the run's first start

    def __call__(self, event: Event) -> None:
        """Take an event of the training: once it has begun, the resumption was not refused.

        Args:
            event: Any.
        """
        if isinstance(event, RunStarted) and self.goes_on:
            self.record_changes()

    def look_at_data(self, resume: bool, accept_changed_data: bool) -> None:
        """Compare rows and images with those that the run began with, before anything is written.

        Args:
            resume: The run is to go on.
            accept_changed_data: It may, though they have changed.

        Raises:
            CheckpointError: They have changed.
        """
        rows = {"train": self.splits.train, "val": self.splits.val, "test": self.splits.test}
        earlier, kept = None, self.folder.data
        if resume and kept.exists():
            try:
                earlier = DataRecord.read(kept)
            except DamagedFileError as error:
                self._note(f"{error}. It is not known whether the data have changed since the run began")
        self.data = DataRecord.of(rows, earlier, self.splits.copies.files)
        changes = self.data.changes_since(earlier) if earlier is not None else []
        if changes and not accept_changed_data:
            raise CheckpointError(
                f"The data have changed since the run in {self.folder.path} began. {'; '.join(changes)}. Put them back "
                "as they were, begin anew in another output directory, or go on with them as they are now "
                "(accept_changed_data=True)"
            )
        if changes:
            self._note(f"The run has gone on with data that had changed since it began. {'; '.join(changes)}")

    def begin(self, resume: bool) -> None:
        """Write ``recipe.yaml``, ``domain.yaml`` and ``run.json``. What a checkpoint was trained with stays on record:
        should this resumption be refused, it is what repeats the run.

        Args:
            resume: The run is to go on.

        Raises:
            CheckpointError: Before the first checkpoint, the model has other weights now than when the run began.
            DamagedFileError: ``run.json`` is damaged.
        """
        folder, session = self.folder, self.session
        self.goes_on = resume and folder.is_trained
        if resume:
            self._read_earlier()
        else:
            self.decisions = [decision.to_dict() for decision in self.run.decisions]
        if self.initial_weights is None:
            self.initial_weights = weights_digest(session.encoder)
        elif not self.goes_on:
            self.require_initial_weights("No checkpoint was written yet")
        if not self.goes_on:
            write_domain(self.run.domain, folder.path)
            self._write_recipe(self._recipe())
        self.data.write(folder.data)
        facts = {
            "command": sys.argv,
            "environment": environment(),
            "decisions": self.decisions,
            "device": {"type": session.device.type, "name": session.device_manager.name},
            "precision": session.precision.name,
            "notes": self.splits.notes,
            "before_training_s": self.earlier_s,
            "initial_weights": self.initial_weights,
            "threads": self.threads,
        }
        write_record(folder.facts, jsonable(facts))

    def _read_earlier(self) -> None:
        """Take over what earlier starts of the run have on record."""
        folder, own = self.folder, [decision.to_dict() for decision in self.run.decisions]
        self.decisions = own
        if folder.recipe.exists():
            try:
                self.recorded, _ = parse_recipe(read_checked(folder.recipe), "recipe.yaml")
            except DamagedFileError as error:
                self._note(f"{error}. It is written anew from the recipe that was given now")
        if folder.facts.exists():
            try:
                earlier = read_record(folder.facts)
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{error}. Delete it to go on: the report then has no reasons of the decisions that were made "
                    "when the run began"
                ) from error
            self.initial_weights, self.threads = earlier["initial_weights"], earlier.get("threads", self.threads)
            if self.goes_on:
                self.decisions, self.earlier_s = earlier["decisions"], earlier["before_training_s"]
            elif self.recorded is not None:  # from the recipe on record nothing is left to decide
                now, decided = self._recipe(), {each["key"] for each in own}
                same = [
                    each
                    for each in earlier["decisions"]
                    if each["key"] not in decided and self.recorded.get(each["key"]) == now.get(each["key"])
                ]
                self.decisions = same + own
        elif self.goes_on and not own:
            self._note(f"{folder.facts} is gone, and with it the reasons of what was decided when the run began")

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self.console.print(f"Note: {text}.", markup=False, highlight=False)

    def require_initial_weights(self, why: str) -> None:
        """Refuse to measure, or to train, other weights than those that the run began with.

        Args:
            why: What would have to be done with them, for the message.

        Raises:
            CheckpointError: The model has other weights.
        """
        if self.initial_weights not in (None, weights_digest(self.session.encoder)):
            raise CheckpointError(
                f"{why}, and {self.run.recipe.model_name} has other weights now than when the run in "
                f"{self.folder.path} began. Put those weights back, or begin anew with overwrite=True"
            )

    def kept(self, measure: Callable[[bool], T]) -> T:
        """What was measured before the training: read, and measured again where the file is damaged.

        Args:
            measure: Is told whether it may read what an earlier start has found.

        Returns:
            What it found.

        Raises:
            CheckpointError: It would have to be measured again, on weights that are no longer there.
        """
        try:
            return measure(self.goes_on)
        except DamagedFileError as error:
            self.require_initial_weights(str(error))
            self._note(f"{error}. What it held is measured again")
            return measure(False)

    def _recipe(self) -> dict[str, Any]:
        return recorded_recipe(self.run.recipe.to_dict())

    def evaluated_otherwise(self) -> bool:
        """Whether a resumption has changed how the model is evaluated, so that what was measured before the training
        has to be measured again, on the initial weights.

        Returns:
            True also where the recipe on record is gone or damaged.
        """
        now, before = self._recipe(), self.recorded
        if before is None:
            return True
        asked = [name for name, facts in facts_by_key(CLIPFinetuningConfig) if facts.section == "evaluation"]
        return any(before.get(name) != now.get(name) for name in asked)

    def record_changes(self) -> None:
        """Write down what a resumption, now that it was not refused, has changed of the keys that it may change; the
        decisions about others still hold."""
        folder, saved = self.folder, self._recipe()
        before = self.recorded
        if before is None or not (folder.path / DOMAIN_FILE).exists():  # the checkpoint was of what is given now
            write_domain(self.run.domain, folder.path)
        if before is None:
            before, changed = {}, saved
        else:
            may_change = NEUTRAL_KEYS.union(LENGTH_KEYS) & saved.keys()
            changed = {key: saved[key] for key in may_change if before.get(key) != saved[key]}
        if changed:
            self._write_recipe(before | changed)
            self.recorded = before | changed
        if before and changed:
            self.decisions = [each for each in self.decisions if each["key"] not in changed]
            write_record(folder.facts, read_record(folder.facts) | {"decisions": self.decisions})

    def _write_recipe(self, values: dict[str, Any]) -> None:
        note = ""
        if self.session.device.type == "cpu":
            note = f"# Trained by {self.threads} threads (OMP_NUM_THREADS): another number rounds sums otherwise.\n"
        write_text(self.folder.recipe, with_checksum(note + yaml_text(values, sort_keys=True)))

    def took(self, seconds: float) -> None:
        """Write down what this start took before it trained.

        Args:
            seconds: That.
        """
        write_record(
            self.folder.facts, read_record(self.folder.facts) | {"before_training_s": self.earlier_s + seconds}
        )


def environment() -> dict[str, Any]:
    """Versions a run depends on.

    Returns:
        ``python``, ``platform``, and ``packages``: a version by name, None for a package that is not installed.
    """
    packages: dict[str, str | None] = {}
    for name in ("domainclip", "torch", "transformers", "numpy", "pillow", "simplejpeg", "safetensors"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}
