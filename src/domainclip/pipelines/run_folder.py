"""``RunFolder``: the names of the files that a run writes, who may write there, and what may be deleted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from domainclip.domains.files import DOMAIN_FILE
from domainclip.errors import ConfigurationError
from domainclip.files import require_writable
from domainclip.reports.alignment_report import remove_report
from domainclip.reports.error_analysis_page import FILE as ERROR_ANALYSIS
from domainclip.reports.run_report import FILES as REPORT_FILES
from domainclip.reports.run_report import REPORT
from domainclip.training.checkpoint import CheckpointStore


class RunFolder:
    """The folder of one run. Nothing in it but what a run writes is ever touched.

    Args:
        path: The folder; it need not be there yet.
    """

    FILES = (
        "recipe.yaml",
        DOMAIN_FILE,
        "run.json",
        "before.json",
        "reference_before.json",
        "alignment_before.safetensors",
        "metrics.jsonl",
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
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        """The resolved recipe, which repeats the run."""
        self.facts = self.path / "run.json"
        """Command, environment and decisions."""
        self.before = self.path / "before.json"
        """The evaluation of the untrained weights."""
        self.references_before = self.path / "reference_before.json"
        """Figures of the reference sets before the training."""
        self.alignment_before = self.path / "alignment_before.safetensors"
        """Embeddings of the evaluated rows before the training."""
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.best = self.path / "best"
        """The weights of the best validation."""
        self.model = self.path / "model"
        """The model that is the run's result."""
        self.report = self.path / REPORT
        self.skipped = self.path / "skipped.json"
        """Rows that were left out, with reasons."""
        self.alignment = self.path / "alignment"

    def claim(self, resume: bool = False, overwrite: bool = False) -> None:
        """Make sure, before any work, that the run can be written here and destroys no other; deletes nothing yet.

        Args:
            resume: The run in the folder is to go on.
            overwrite: The run in the folder is to be replaced.

        Raises:
            ConfigurationError: The folder cannot be written, or holds another run.
        """
        claim_folder(self.path, self.FILES, "run", resume, overwrite)

    def clear(self) -> None:
        """Delete what an earlier run wrote here, and nothing else."""
        clear_folder(self.path, self.FILES)
        remove_report(self.alignment)

    @property
    def is_trained(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return bool(CheckpointStore(self.checkpoints).all())


def claim_folder(folder: Path, names: Sequence[str], what: str, resume: bool, overwrite: bool) -> None:
    """Make sure, before any work, that files can be written to a folder and that they destroy no earlier work.

    Args:
        folder: The folder; it need not be there yet.
        names: Of what would be written.
        what: Leaves these files: a "run", or a "study".
        resume: What is in the folder is to go on.
        overwrite: What is in the folder is to be replaced.

    Raises:
        ConfigurationError: The folder cannot be written, or some of the files are there and nobody said what to do.
    """
    if resume and overwrite:
        raise ConfigurationError(f"resume=True goes on with a {what}, overwrite=True deletes it: give one of the two")
    require_writable(folder, "The output directory")
    used = [name for name in names if (folder / name).exists()]
    if used and not resume and not overwrite:
        raise ConfigurationError(
            f"{folder} already holds a {what} ({', '.join(used[:3])}). Use resume=True to go on with it, "
            "overwrite=True to start again, or another output directory"
        )


def clear_folder(folder: Path, names: Sequence[str]) -> None:
    """Delete some files and folders of a folder, where they are there.

    Args:
        folder: Where they lie.
        names: Their names.
    """
    for name in names:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
