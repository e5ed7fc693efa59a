"""The ``domainclip`` command."""

from domainclip.cli.main import main

__all__ = ["main"]
