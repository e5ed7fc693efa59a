"""What a run, a study or a demonstration writes into its folder: whose it is, and what of it may be deleted."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from domainclip.config import CLIPFinetuningConfig
from domainclip.config.key_facts import facts_by_key
from domainclip.data.sources.folder_contents import FolderContents
from domainclip.domains.files import DOMAIN_FILE
from domainclip.errors import ConfigurationError
from domainclip.files import remove_leftovers, require_writable
from domainclip.output_record import SINGLE_FILES, Written, read_record_of, remove_record_of, write_record_of
from domainclip.pipelines.output_lock import locked_output
from domainclip.reports.alignment_report import remove_report
from domainclip.reports.error_analysis_page import FILE as ERROR_ANALYSIS
from domainclip.reports.run_report import FILES as REPORT_FILES
from domainclip.reports.run_report import REPORT
from domainclip.tracking import RunFiles
from domainclip.training.checkpoint import CheckpointStore


class OutputFolder:
    """A folder with a record (``.domainclip.json``) of what was written there, so that nothing else is ever deleted.

    Args:
        path: The folder; it need not be there yet.
        names: Files and folders that are written there.
        what: Leaves them: a "run", a "study" or a "demonstration".
    """

    def __init__(self, path: str | Path, names: Sequence[str], what: str) -> None:
        self.path, self.names, self.what = Path(path), tuple(names), what

    def claim(self, resume: bool = False, overwrite: bool = False, inputs: Sequence[tuple[str, str]] = ()) -> None:
        """Make sure, before any work, that files can be written here and that they destroy nothing that is not to be
        replaced. Deletes nothing yet.

        Args:
            resume: What is in the folder is to go on.
            overwrite: What is in the folder is to be replaced.
            inputs: Key and path of each thing that is read.

        Raises:
            ConfigurationError: The folder cannot be written, holds another run, holds files of these names that nobody
                but the user can have put there, or files that are read; or there is nothing to go on with.
        """
        if resume and overwrite:
            raise ConfigurationError(
                f"resume=True goes on with a {self.what}, overwrite=True deletes it: give one of the two"
            )
        require_writable(self.path, "The output directory")
        if resume:
            if not self.holds_one:
                raise ConfigurationError(f"There is no {self.what} in {self.path} to resume: leave resume=True out")
            for each in self._written()["files"] or self.names:  # now, not when the file is written, hours later
                if Path(each).suffix and (self.path / each).is_dir():
                    raise ConfigurationError(f"{self.path / each} is a folder, where a file has to be: move it away")
            return
        present = [name for name in self.names if os.path.lexists(self.path / name)]
        written = self._written()
        refuse_among_data(self.path, inputs)
        if overwrite:
            for key, path in inputs:
                if name := next((name for name in present if _lies_in(Path(path), self.path / name)), None):
                    raise ConfigurationError(
                        f"{key}={path} is read, and {self.path / name} would be replaced: give another output directory"
                    )
        if foreign := [name for name in present if name not in written["names"]]:
            raise ConfigurationError(
                f"{self.path} holds files that no {self.what} has written and that one would replace "
                f"({', '.join(foreign[:3])}): move them away, or give another output directory"
            )
        if present and not overwrite:
            raise ConfigurationError(
                f"{self.path} already holds a {self.what} ({', '.join(present[:3])}). Use resume=True to go on with "
                "it, overwrite=True to start again, or another output directory"
            )
        listed = written["files"]
        if listed is not None and (added := sorted({*self._files()} - {*listed})):
            raise ConfigurationError(
                f"{self.path} holds files among those to be replaced that the {self.what} there has not written "
                f"({', '.join(added[:3])}): move them away, or give another output directory"
            )

    @property
    def holds_one(self) -> bool:
        """Whether there is something to go on with."""
        return any((self.path / name).exists() for name in self._written()["names"])

    def begin(self) -> None:
        """Write down that files of these names are ours from here on, and remove what killed writes have left of them:
        the folder is locked, so that nobody is writing any more."""
        write_record_of(self.path, self.what, self.names)
        remove_leftovers(self.path)
        for place in (self.path / name for name in self.names):
            if place.is_dir() and not place.is_symlink():
                for folder in [place, *(path for path in place.rglob("*") if path.is_dir())]:
                    remove_leftovers(folder)

    def end(self) -> None:
        """Write down which files were written: what is added to their folders later is the user's."""
        if self._written()["names"]:
            write_record_of(self.path, self.what, self.names, sorted(self._files()))

    def clear(self) -> None:
        """Delete what was written here, and nothing else."""
        for name in self._written()["names"]:
            path = self.path / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        remove_record_of(self.path, self.what)

    def _written(self) -> Written:
        return read_record_of(self.path).get(self.what, Written(names=[], files=None))

    def _files(self) -> Iterator[str]:
        for name in self.names:
            path = self.path / name
            for each in path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,):
                if each.is_symlink() or each.is_file():
                    yield each.relative_to(self.path).as_posix()


class RunFolder(OutputFolder):
    """The folder of one run.

    Args:
        path: The folder; it need not be there yet.
    """

    FILES = (
        "recipe.yaml",
        DOMAIN_FILE,
        "run.json",
        "data.json",
        "before.json",
        "reference_before.json",
        "alignment_before.safetensors",
        "metrics.jsonl",
        "milestones.jsonl",
        "validations.jsonl",
        "classes.json",
        "progress.json",
        "notifications",
        "exports.json",
        "tensorboard",
        "wandb",
        "memory.json",
        "checkpoints",
        "best",
        "model",
        *REPORT_FILES,
        "plots",
        "skipped.json",
        ERROR_ANALYSIS,
    )
    """Files and folders that a run writes; an alignment report may be beside them."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path, self.FILES, "run")
        self.recipe = self.path / "recipe.yaml"
        """The resolved recipe, which repeats the run."""
        self.facts = self.path / "run.json"
        """Command, environment and decisions."""
        self.data = self.path / "data.json"
        """The rows of all splits, and digests of their images."""
        self.before = self.path / "before.json"
        """The evaluation of the untrained weights."""
        self.references_before = self.path / "reference_before.json"
        """Figures of the reference sets before the training."""
        self.alignment_before = self.path / "alignment_before.safetensors"
        """Embeddings of the evaluated rows before the training."""
        self.metrics = self.path / "metrics.jsonl"
        self.milestones = self.path / "milestones.jsonl"
        self.validations = self.path / "validations.jsonl"
        """Histograms of similarities."""
        self.classes = self.path / "classes.json"
        """The worst classes of the newest validation."""
        self.progress = self.path / "progress.json"
        """What the run is doing."""
        self.notifications = self.path / "notifications"
        """Messages that wait to be sent, and which were."""
        self.exports = self.path / "exports.json"
        """How far each tracker has been told."""
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        """The weights of the best validation."""
        self.model = self.path / "model"
        """The model that is the run's result."""
        self.report = self.path / REPORT
        self.skipped = self.path / "skipped.json"
        """Rows that were left out, with reasons."""
        self.alignment = self.path / "alignment"

    @property
    def holds_one(self) -> bool:
        """Whether there is a run to go on with: one that had begun."""
        return self.is_trained or super().holds_one

    def files(self, warn: Callable[[str], None]) -> RunFiles:
        """The listener that writes the run's files line by line.

        Args:
            warn: Called once with a sentence for each file that cannot be written.

        Returns:
            The listener.
        """
        return RunFiles.of(self.metrics, self.milestones, self.validations, self.classes, warn)

    def begin(self) -> None:
        """Write down that files of these names are ours from here on, and remove what a killed process left."""
        super().begin()
        for folder in (self.alignment, self.alignment / "plots"):
            remove_leftovers(folder)

    def clear(self) -> None:
        """Delete what an earlier run wrote here, and nothing else."""
        super().clear()
        remove_report(self.alignment)

    def claim(self, resume: bool = False, overwrite: bool = False, inputs: Sequence[tuple[str, str]] = ()) -> None:
        """See ``OutputFolder.claim``.

        Args:
            resume: What is in the folder is to go on.
            overwrite: What is in the folder is to be replaced.
            inputs: Key and path of each thing that is read.

        Raises:
            ConfigurationError: As there; or the run is finished, and its checkpoint was not kept.
        """
        super().claim(resume, overwrite, inputs)
        if resume and self.model.is_dir() and not self.is_trained:
            remove_leftovers(self.path)
            raise ConfigurationError(
                f"The run in {self.path} is finished, and no checkpoint of it was kept (keep_checkpoints=0), so that "
                f"it cannot go on. Its result is {self.model}: train on from that (model_name={self.model}) in "
                "another output directory, or start again with overwrite=True"
            )

    def tidy(self, keep_checkpoints: int) -> tuple[int, int]:
        """Remove what a finished run has no use for, be it lengthened or not.

        Args:
            keep_checkpoints: With 0, it is never lengthened.

        Returns:
            Bytes of the folder, and how many of them are there only to lengthen the run.

        Raises:
            OSError: A folder cannot be moved.
        """
        CheckpointStore(self.checkpoints).finish(keep_checkpoints > 0)
        needed = _bytes_of(path for path in self.path.rglob("*") if not path.is_relative_to(self.checkpoints))
        size = _bytes_of(self.path.rglob("*"))
        return size, size - needed

    @property
    def is_trained(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(CheckpointStore(self.checkpoints).all())


def _bytes_of(paths: Iterable[Path]) -> int:
    """Of files, each counted once however often it is linked."""
    sizes = {}
    for path in paths:
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def paths_read(config: CLIPFinetuningConfig) -> list[tuple[str, str]]:
    """What a recipe reads from this machine's disk.

    Args:
        config: The recipe.

    Returns:
        Key and path of each that is there.
    """
    found = []
    for name, facts in facts_by_key(CLIPFinetuningConfig):
        value = getattr(config, name) if facts.path == "read" else None
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and Path(each).exists():
                found.append((name, each))
    return found


def refuse_among_data(folder: Path, inputs: Sequence[tuple[str, str]]) -> None:
    """See to it that an output folder holds none of the data that it lies in: what we write is left out of them.

    Args:
        folder: It need not be there yet.
        inputs: Key and path of each thing that is read.

    Raises:
        ConfigurationError: It holds images of the data, and nothing of ours.
    """
    for key, path in inputs:
        inside = Path(path).is_dir() and _lies_in(folder, Path(path)) and folder.resolve() != Path(path).resolve()
        new = inside and folder.is_dir() and not read_record_of(folder)
        if new and (images := FolderContents.of(folder).images):
            raise ConfigurationError(
                f"{folder} holds images of {key}={path} ({images[0].name}), and nothing beside what a command writes "
                "there would be read as data any more: give an output directory of its own"
            )


@contextmanager
def output_file(
    path: Path | None,
    inputs: Sequence[tuple[str, str]],
    warn: Callable[[str], object],
    beside: Sequence[str] = (),
) -> Iterator[None]:
    """Within it a command works whose result goes to a file: no other writes it, and it is nothing that is read. Where
    it lies among the data, it is noted down as ours, so that it is not read as one of them the next time.

    Args:
        path: The file; None where there is none.
        inputs: Key and path of each thing that is read.
        warn: Takes a sentence, where the file system knows no locks.
        beside: Names of further files that are written beside it.

    Yields:
        Nothing.

    Raises:
        ConfigurationError: The file is read or lies among files that are, another process writes it, or it cannot be
            written.
    """
    if path is None:
        yield
        return
    within = [(key, each) for key, each in inputs if _lies_in(path, Path(each))]
    ours = read_record_of(path.parent).get(SINGLE_FILES, Written(names=[], files=None))["names"] if within else []
    for name in (path.name, *beside):
        if within and os.path.lexists(path.with_name(name)) and name not in ours:
            key, each = within[0]
            raise ConfigurationError(
                f"--output {path} would replace {path.with_name(name)}, a file of {key}={each}: give another name"
            )
    with locked_output(path, "--output", warn, is_file=True):
        if within:
            write_record_of(path.parent, SINGLE_FILES, sorted({*ours, path.name, *beside}))
        yield


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path is ``folder`` or below it, as it is written or where its links lead."""
    places = {Path(os.path.abspath(folder)), folder.parent.resolve() / folder.name}
    if not folder.is_symlink():
        places.add(folder.resolve())
    own = {Path(os.path.abspath(path)), path.resolve(), path.parent.resolve() / path.name}
    return any(each.is_relative_to(place) for each in own for place in places)
