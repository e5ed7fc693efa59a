"""What tests of several objectives share."""

from __future__ import annotations

import pytest

GROUPS = {"pairs": [0, 1, 2, 3, 4, 5], "some equal": [0, 1, 0, 2, 1, 0], "all equal": [7] * 6}
close = pytest.approx
