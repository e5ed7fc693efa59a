"""Saving a run so that it can be killed at any moment and go on as if nothing had happened."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainclip.errors import CheckpointError
from domainclip.files import damage_of, digests_of, replaced_directory, write_json

log = logging.getLogger(__name__)

_NAME = re.compile(r"step-(\d{8})$")
MANIFEST = "manifest.json"
BEST = "best"


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of every generator a run uses: Python's, NumPy's, torch's, the device's.

    Args:
        device: Whose generator is asked besides the CPU's.

    Returns:
        Plain values and tensors by the generator's name.
    """
    version, keys, gauss = random.getstate()
    name, array, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(keys), gauss],
        "numpy": [name, [int(v) for v in array], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators back.

    Args:
        state: From ``random_state``.
        device: Whose generator is set besides the CPU's.
    """
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, array, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(array, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])


def recover_directory(target: Path) -> None:
    """Put in order what a kill during ``files.replaced_directory(target)`` left behind.

    Killed between its two renames, the only whole version is the one moved aside: it goes back to its place.

    Args:
        target: The folder that was being replaced.
    """
    if not target.parent.is_dir():
        return
    for path in sorted(target.parent.glob(f".{target.name}.*")):
        if path.name.endswith(".old") and not target.exists():
            path.rename(target)
        elif path.name.endswith((".tmp", ".old")):
            shutil.rmtree(path, ignore_errors=True)


def write_state(folder: Path, state: dict[str, Any], **facts: object) -> None:
    """Replace a folder by one with ``state.pt`` and a manifest of its SHA-256, whole or not at all.

    Args:
        folder: Which.
        state: Plain values and tensors.
        facts: Plain values for the manifest.

    Raises:
        OSError: It cannot be written; or a RuntimeError, which is how torch reports a full disk.
    """
    with replaced_directory(folder) as temporary:
        torch.save(state, temporary / "state.pt")
        write_json(temporary / MANIFEST, {"best": None, **facts, "files": digests_of(temporary)})


def read_state(folder: Path) -> dict[str, Any]:
    """Read what ``write_state`` wrote.

    Args:
        folder: Which.

    Returns:
        The state, with tensors on the CPU.

    Raises:
        CheckpointError: A file is missing, damaged or not what the manifest says.
    """
    try:
        if problem := damage_of(folder, _manifest(folder)[0]):
            raise CheckpointError(problem)
        return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _manifest(folder: Path) -> tuple[dict[str, str], dict[str, str] | None]:
    """Digests of a folder's files, and of the best weights that a checkpoint knows."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    files = manifest["files"]
    return {"state.pt": files["state.pt"], **files}, manifest["best"]


def _is_whole(file: Path, digest: str) -> bool:
    return not damage_of(file.parent, {file.name: digest})


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's folder, and the step it is of."""

    path: Path
    step: int


class CheckpointStore:
    """Checkpoints of one run: ``step-00000120/`` with ``state.pt`` and a SHA-256 manifest.

    A checkpoint is written beside its final place, fsynced and renamed: it is there whole or not at all. The best
    weights, which a run ends with, lie in ``best/`` beside ``folder``; once better ones take their place, those that
    the newest checkpoint knows stay in its ``best/``, for a run that goes on from there. Files of theirs that are in
    ``model/`` as well, the result of a finished run, are on the disk once.

    Args:
        folder: Where they are.
        keep: How many of the newest are kept.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.best = self.folder.parent / BEST
        self.model = self.folder.parent / "model"

    def all(self) -> list[Checkpoint]:
        """List the checkpoints.

        Returns:
            Oldest first.
        """
        if not self.folder.is_dir():
            return []
        found = [(int(match.group(1)), path) for path in self.folder.iterdir() if (match := _NAME.match(path.name))]
        return [Checkpoint(path, step) for step, path in sorted(found)]

    def last_step(self) -> int | None:
        """Look for the newest checkpoint.

        Returns:
            Its step; None where there is none.
        """
        present = self.all()
        return present[-1].step if present else None

    def save(self, step: int, state: dict[str, Any], best: Mapping[str, str] | None = None) -> Path:
        """Write a checkpoint, and delete those that are not to be kept.

        Args:
            step: That it is of.
            state: Plain values and tensors.
            best: Digests of the best weights so far, without which the checkpoint is not whole.

        Returns:
            Its folder.

        Raises:
            CheckpointError: It cannot be written; whatever was saved before stays.
        """
        target = self.folder / f"step-{step:08d}"
        try:
            self._sweep()
            write_state(target, state, step=step, best=None if best is None else dict(best))
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise CheckpointError(
                f"Checkpoint at step {step} could not be written to {self.folder}: {error}. What was saved before is "
                "untouched; free some space"
            ) from error
        # Later steps are of a course that was given up (damaged, or a run begun anew): kept, they would be counted
        # among the newest and push out the sound ones.
        present = self.all()
        reached = [checkpoint for checkpoint in present if checkpoint.step <= step]
        for old in [c for c in present if c.step > step] + reached[: -self.keep]:
            shutil.rmtree(old.path, ignore_errors=True)
        return target

    def finish(self, keep: bool) -> None:
        """Keep of a finished run what lengthens it: the newest checkpoint, and with it the best weights, which take no
        room of their own where ``model/`` is the same. Killed at any moment, the run goes on or is finished.

        Args:
            keep: Whether anything is kept at all.

        Raises:
            OSError: A folder cannot be moved.
        """
        self._sweep()
        newest = next(reversed(self.all()), None)
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.is_dir() and (newest is None or path != newest.path):
                shutil.rmtree(path, ignore_errors=True)
        if newest is not None:
            self._keep_best_with(newest)
        if not keep and self.folder.is_dir():  # in one step: a run without its best weights could not go on
            aside = self.folder.with_name(f".{self.folder.name}.{uuid.uuid4().hex[:8]}.tmp")
            self.folder.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _keep_best_with(self, checkpoint: Checkpoint) -> None:
        """Move the best weights into a checkpoint's folder; what is in ``model/`` as well is kept once on the disk."""
        kept = checkpoint.path / BEST
        try:
            digests = _manifest(checkpoint.path)[1] or {}
            if self.best.is_dir() and digests and not damage_of(self.best, digests):
                shutil.rmtree(kept, ignore_errors=True)
                self.best.rename(kept)
            else:  # those of a probe after the checkpoint, which a run that goes on trains again
                self._find_best(digests, [kept, self.model])
                shutil.rmtree(self.best, ignore_errors=True)
        except (CheckpointError, OSError, ValueError, KeyError, TypeError) as error:  # whoever goes on is told
            log.debug("%s keeps its best weights where they are: %s", checkpoint.path, error)
            return
        for name, digest in digests.items():
            if _is_whole(self.model / name, digest):
                self._keep_once(name, kept)

    def _keep_once(self, name: str, kept: Path) -> None:
        """Have a file of ``model/`` stand in ``kept`` as the same one, or where links are not known, not at all."""
        linked = kept / f".{name}.tmp"
        try:
            kept.mkdir(exist_ok=True)
            linked.unlink(missing_ok=True)
            os.link(self.model / name, linked)
            os.replace(linked, kept / name)
            linked.unlink(missing_ok=True)  # it was the same one already: then the rename does nothing
        except OSError:
            (kept / name).unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what a killed run left half-written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if path.name.endswith((".tmp", ".old")):
                    shutil.rmtree(path, ignore_errors=True)

    def load(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Read a checkpoint.

        Args:
            checkpoint: One of ``all()``.

        Returns:
            What was saved, with tensors on the CPU.

        Raises:
            CheckpointError: A file is missing, damaged or not what the manifest says.
        """
        state = read_state(checkpoint.path)
        best = _manifest(checkpoint.path)[1]
        if best is not None:
            self._find_best(best)
        return state

    def _find_best(self, digests: Mapping[str, str], within: Sequence[Path] | None = None) -> dict[str, Path]:
        """Where each file of these best weights is; ``within`` these folders, or wherever they may be.

        Raises:
            CheckpointError: One is nowhere, or damaged.
        """
        folders = within or [
            self.best,
            *(checkpoint.path / BEST for checkpoint in reversed(self.all())),
            self.model,
        ]
        found = {}
        for name, digest in digests.items():
            places = [folder / name for folder in folders if os.path.lexists(folder / name)]
            whole = next((place for place in places if _is_whole(place, digest)), None)
            if whole is None and places:
                raise CheckpointError(damage_of(places[0].parent, {places[0].name: digest}))
            if whole is None:
                raise CheckpointError(
                    f"{name} of the best weights is neither in {folders[0]} nor in {self.model} (put it back)"
                )
            found[name] = whole
        return found

    def home_of(self, digests: Mapping[str, str] | None) -> Path | None:
        """Ask where best weights belong once better ones take their place.

        Args:
            digests: Of the weights in ``best/``; None: nobody knows.

        Returns:
            A folder within the newest checkpoint, if that needs them; else None.
        """
        present = self.all()
        try:
            needed = bool(present) and digests is not None and _manifest(present[-1].path)[1] == dict(digests)
        except (OSError, ValueError, KeyError, TypeError):  # of no use any more
            return None
        return present[-1].path / BEST if needed else None

    def put_back_best(self, checkpoint: Checkpoint) -> None:
        """Make ``best/`` what it was at a checkpoint, as a run does that goes on from there.

        Args:
            checkpoint: One that ``load`` found whole.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        try:
            best = _manifest(checkpoint.path)[1]
            if best is not None and damage_of(self.best, best):
                kept = checkpoint.path / BEST / "best.json"
                with replaced_directory(self.best) as temporary:
                    for name, path in {
                        **({kept.name: kept} if kept.is_file() else {}),
                        **self._find_best(best),
                    }.items():
                        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(path, temporary / name)
            shutil.rmtree(checkpoint.path / BEST, ignore_errors=True)  # which ``best/`` is now, or was all along
        except OSError as error:
            raise CheckpointError(f"{self.best} cannot be put back as it was at {checkpoint.path}: {error}") from error

    def load_latest(self) -> tuple[dict[str, Any], Checkpoint, list[str]] | None:
        """Read the newest checkpoint that is whole.

        Returns:
            What was saved, the checkpoint, and what was wrong with newer ones; None where there is none at all.

        Raises:
            CheckpointError: There are checkpoints, and every one is damaged.
        """
        problems: list[str] = []
        for checkpoint in reversed(self.all()):
            try:
                return self.load(checkpoint), checkpoint, problems
            except CheckpointError as error:
                problems.append(str(error))
                log.warning("%s; trying the one before", error)
        if problems:
            raise CheckpointError(
                "No checkpoint is whole: "
                + "; ".join(problems)
                + ". Begin anew with overwrite=True or in another output directory"
            )
        return None
