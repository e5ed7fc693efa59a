"""How many requests a service answers in time: arrivals, a cheap client, the highest rate, a null server."""

from __future__ import annotations

from pathlib import Path

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
"""For those who use locust; nothing here imports it."""
