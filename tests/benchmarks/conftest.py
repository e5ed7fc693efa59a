"""The scripts in benchmarks/ run for minutes even in their short forms: ``make test-extras`` asks for these tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def only_when_asked_for(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("slow") and not os.environ.get("DOMAINCLIP_TEST_BENCHMARKS"):
        pytest.skip("runs a script of benchmarks/: set DOMAINCLIP_TEST_BENCHMARKS=1, or make test-extras")
