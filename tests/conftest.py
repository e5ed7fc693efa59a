"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: ``DOMAINCLIP_DATA``, else ``../shared/data`` by the repository."""
    default = Path(__file__).resolve().parents[1] / "../shared/data"
    folder = Path(os.environ.get("DOMAINCLIP_DATA", default)).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set DOMAINCLIP_DATA to the folder that holds it")
    return folder
