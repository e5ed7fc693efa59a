"""What the libraries that load models say: kept quiet while they work, and put into one line where they fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from domainclip.errors import ModelLoadError


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bar for loading or writing a model while the block runs, and no warnings of transformers: what is wrong with a
    model is found here, and is an error. Restored as it was.

    Returns:
        A context manager.
    """
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What went wrong, for a message of one line.

    Args:
        error: Whose text may be long.

    Returns:
        At most 300 characters.
    """
    return str(error).strip().split("\n")[0][:300]


def hub_error(kind: str, name: str, error: BaseException) -> ModelLoadError:
    """For what could not be had from the hub.

    Args:
        kind: What was asked for.
        name: Of the repository.
        error: What happened.

    Returns:
        The error to raise, with the remedy.
    """
    return ModelLoadError(
        f"Cannot load the {kind} {name!r} from the hub: the name is wrong, the model is gated, or there is no network "
        f"({first_line(error)}). To work offline, download it once on a machine with a network "
        f"(hf download {name} --local-dir DIR) and give model_name=DIR"
    )
