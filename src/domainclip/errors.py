"""The package's exceptions. Each message says what was wrong, with which value, and what to do about it.

Whatever is wrong with a *value* the user gave is also a ``ValueError``, a value of a wrong type also a ``TypeError``,
and a missing file also a ``FileNotFoundError``, so that callers who know nothing of this package still catch it.
The command line turns every ``CLIPFinetuningError`` into one line and exit code 2.
"""

from __future__ import annotations


class CLIPFinetuningError(Exception):
    """Base of everything this package raises on purpose."""


class ConfigurationError(CLIPFinetuningError, ValueError):
    """A recipe or setting is wrong: unknown key, value out of range, keys that contradict each other."""


class DataError(CLIPFinetuningError, ValueError):
    """A data set cannot be used as it is: missing column, no valid pair, unreadable file."""


class InputTypeError(DataError, TypeError):
    """What was given is of a type that is not taken here."""


class ImageError(DataError):
    """One image cannot be read. Outside ``strict`` mode its row is skipped, counted and reported."""


class ImageTooLargeError(ImageError):
    """An image has more pixels, or would take more memory, than is allowed."""


class MissingFileError(DataError, FileNotFoundError):
    """A table, a folder or another file of the data is not there."""


class MissingImageError(ImageError, FileNotFoundError):
    """The file of an image is not there."""


class MissingRecipeError(ConfigurationError, FileNotFoundError):
    """The file of a recipe or a domain is not there."""


class ShapeError(CLIPFinetuningError, ValueError):
    """Tensors whose shapes or values do not fit the operation."""


class ModelLoadError(CLIPFinetuningError):
    """A model, tokenizer or image processor could not be loaded."""


class ModelNotInitializedError(CLIPFinetuningError, RuntimeError):
    """Something needs the model before ``setup()`` has loaded it."""


class BackendError(CLIPFinetuningError):
    """A back end cannot compute a model: its graph is missing or refused, or the model cannot be converted."""


class DeviceError(CLIPFinetuningError, RuntimeError):
    """The device asked for is not there, or does not do what is asked of it."""


class MPSCompatibilityError(DeviceError):
    """Apple's Metal backend is missing, too old, or gives wrong numbers."""


class MemoryConstraintError(CLIPFinetuningError, RuntimeError):
    """The work does not fit into the memory there is."""


class TrainingDivergedError(CLIPFinetuningError, RuntimeError):
    """Training went wrong in a way that more steps do not mend: non-finite loss, collapse."""


class CheckpointError(CLIPFinetuningError):
    """A checkpoint is damaged, incomplete, or belongs to another recipe."""


class DamagedFileError(CheckpointError):
    """A file that a run has written is not as it was written: changed, cut short, or no longer readable."""


class IndexNotReadyError(CLIPFinetuningError, RuntimeError):
    """An approximate index finds less of what is nearest than was asked for."""


class MissingExtraError(CLIPFinetuningError, ImportError):
    """An optional dependency is needed and not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed. "
            f"Install it with: pip install 'domainclip[{extra}]'"
        )


class Interrupted(CLIPFinetuningError):
    """Training was stopped by a signal after saving; carries the exit code a shell expects (128 + signal)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number
