"""Processes of their own, forked from one that has imported the package: each of them would need seconds for that.

For whole runs that are killed, limited or compared. What is said of the import itself needs a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest


def forking() -> ForkServerContext:
    """The context whose processes are forked that way; one server for all tests of this process."""
    if sys.platform == "win32":
        pytest.skip("processes are forked on POSIX alone")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forked_imports"])
    with pytest.MonkeyPatch.context() as patch:  # the server gets no path but this one
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def start_python(code: str, *arguments: str, output: Path) -> BaseProcess:
    """As ``python -c CODE ARGUMENTS``, with one thread; prints into ``output``, errors beside it into ``.err``."""
    process = forking().Process(target=_execute, args=(code, arguments, output, dict(os.environ), os.getcwd()))
    process.start()
    return process


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``start_python`` to its end."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        process = start_python(code, *arguments, output=output)
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(code)
        printed, errors = (path.read_text() for path in (output, output.with_suffix(".err")))
    return subprocess.CompletedProcess(["-c", *arguments], process.exitcode, printed, errors)


def _execute(code: str, arguments: tuple[str, ...], output: Path, environment: dict[str, str], folder: str) -> None:
    import torch

    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # tests that were started with nohup ignore it
    torch.set_num_threads(1)
    for descriptor, path in ((1, output), (2, output.with_suffix(".err"))):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
