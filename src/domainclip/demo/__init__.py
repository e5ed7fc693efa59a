"""The demonstration that `domainclip demo` and `make demo` run."""

from domainclip.demo.images import build_demo_data
from domainclip.demo.run import run_demo

__all__ = ["build_demo_data", "run_demo"]
