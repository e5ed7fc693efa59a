"""The user's own objectives and metrics: modules that register them when they are imported."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from domainclip.errors import ConfigurationError


def load_plugins(names: Sequence[str]) -> None:
    """Import each of ``names`` once: a module's name (the working directory is searched too), or a ``.py`` file.

    Raises ``ConfigurationError`` for one that is not there or that fails while it is imported.
    """
    for name in names:
        try:
            if name.endswith(".py"):
                _import_file(Path(name).resolve())
            else:
                _import_module(name)
        except ConfigurationError:
            raise
        except Exception as error:
            raise ConfigurationError(
                f"plugins: {name!r} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def _import_module(name: str) -> None:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # an installed command does not look there, `python -m` does
        sys.path.append(here)
    try:
        importlib.import_module(name)
    finally:
        if added:
            sys.path.remove(here)


def _import_file(path: Path) -> None:
    name = f"domainclip_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    if name in sys.modules:  # a second run in this process: what it registers is registered
        return
    if not path.is_file():
        raise ConfigurationError(f"plugins: there is no file {path}")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
