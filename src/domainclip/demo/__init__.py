"""The demonstration that `domainclip demo` and `make demo` run."""

from domainclip.demo.run import run_demo

__all__ = ["run_demo"]
