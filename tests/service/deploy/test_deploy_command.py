"""``domainclip deploy`` as it is typed, with a server that keeps the contract in place of the real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import CommandResult
from domainclip.cli import deploy as command
from domainclip.service.deploy import local

Run = Callable[..., CommandResult]


@pytest.fixture
def run(deployment, domainclip: Run, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Run:  # type: ignore[no-untyped-def]
    """``run("MODEL", …)`` is ``domainclip deploy MODEL … --name d``; what follows ``--`` is for the other server."""
    monkeypatch.setenv("DOMAINCLIP_STATE", str(deployment.state))  # which the command's fixture removes
    monkeypatch.setattr(
        command, "serve_command", lambda model, index, options: deployment.command(Path(model).name, *options)
    )
    return lambda *words: domainclip("deploy", *words)


def test_a_model_is_deployed_looked_at_rolled_back_and_stopped(run: Run, zoo: dict[str, Path]) -> None:
    first = run(zoo["clip"], "--to", "local", "--name", "d", "--port", 0, "--watch", 0)
    assert first.exit_code == 0, first.err
    place = re.fullmatch(rf"Version 1 of d serves {zoo['clip']} at (http://127\.0\.0\.1:\d+)\n", first.out)
    assert place is not None, first.out
    assert "Version 1 was ready after" in first.err
    second = run("--to", "local", zoo["siglip"], "--name", "d", "--watch", 0)  # options may come first
    assert second.exit_code == 0 and second.out.startswith("Version 2 of d serves"), second.err

    shown = run("status")
    assert shown.exit_code == 0
    lines = shown.out.splitlines()
    assert lines[0] == f"d: ready, at {place[1]}"
    assert re.fullmatch(r"  supervisor \d+ since [\d :-]+, server \d+, 0 restarts", lines[1])
    assert re.fullmatch(rf"  version   2  in use       [\d :-]+  {zoo['siglip']}  fp-siglip", lines[2])
    assert re.fullmatch(rf"  version   1  replaced     [\d :-]+  {zoo['clip']}  fp-clip", lines[3])
    figures = json.loads(run("status", "--name", "d", "--json").out)
    assert [each["outcome"] for each in figures[0]["versions"]] == ["replaced", "in use"]
    assert figures[0]["health"]["ready"] is True

    back = run("rollback", "--name", "d")
    assert (back.exit_code, back.out) == (0, "Version 1 of d serves again\n")
    ended = run("stop", "--name", "d")
    assert (ended.exit_code, ended.out) == (0, "d has ended. Its versions stay on record\n")
    shown = run("status")
    assert shown.exit_code == 1 and shown.out.startswith(f"d: not running, at {place[1]}\n")
    assert "version   2  rolled back" in shown.out and "(asked for)" in shown.out


def test_a_version_that_fails_is_said_with_the_exit_code(run: Run, zoo: dict[str, Path]) -> None:
    assert run(zoo["clip"], "--name", "d", "--port", 0, "--watch", 0).exit_code == 0
    refused = run(zoo["siglip"], "--name", "d", "--", "--refuse")
    assert refused.exit_code == 2 and not refused.out
    assert (
        "Error: Version 2 failed, and version 1 stays in use: its server ended before it was ready (exit code 2)"
        in (refused.err)
    )
    assert "Error: siglip fails its golden check: cosine 0.5" in refused.err
    crashed = run(zoo["siglip"], "--name", "d", "--watch", 30, "--", "--crash", 0.2)
    assert crashed.exit_code == 2
    assert "Error: Version 3 was rolled back: its server ended (exit code 3). Version 1 is in use again" in crashed.err
    shown = run("status").out
    assert "(its server ended (exit code 3))" in shown
    assert "(its server ended before it was ready (exit code 2). It printed last:" in shown


def test_what_is_not_there(run: Run, tmp_path: Path) -> None:
    assert run("status").out == "There is no deployment. Deploy a model with: domainclip deploy MODEL --to local\n"
    for words in (
        ["status", "--name", "x"],
        ["rollback", "--name", "x"],
        ["stop", "--name", "x"],
        ["run", "--name", "x"],
    ):
        found = run(*words)
        assert found.exit_code == 2 and "Error: There is no deployment named x" in found.err, words
    assert run(tmp_path / "none").exit_code == 2


def test_options_that_do_not_go_together(run: Run, zoo: dict[str, Path]) -> None:
    for words, message in (
        (["--enable"], "--enable goes with --to systemd or launchd, not with --to local: leave it out"),
        (["--output", "x"], "--output goes with --to container, not with --to local"),
        (["--to", "container", "--port", "80"], "--port goes with --to local or systemd or launchd"),
        (["--index", "nowhere"], "There is no index nowhere"),
        (["--name", "a/b"], "Invalid name 'a/b' of a deployment"),
    ):
        found = run(zoo["clip"], *words)
        assert found.exit_code == 2 and message in found.err, (words, found.err)


def test_what_is_started_is_serve_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.serve_command("/m", Path("index"), ["--slo", "50"])[1:] == (
        *("-m", "domainclip", "serve", "--model", "/m", "--index", str(tmp_path / "index"), "--slo", "50"),
    )


def test_run_becomes_the_supervisor(deployment, zoo: dict[str, Path], monkeypatch: pytest.MonkeyPatch, wait) -> None:  # type: ignore[no-untyped-def]
    """The same process, so that signals, and sockets that were handed over, reach it."""
    local.note_down("d", "a", deployment.command("a"), port=0)
    line = [sys.executable, "-m", "domainclip", "deploy", "run", "--name", "d"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        wait(lambda: deployment.status["health"].get("ready", False))
        assert deployment.status["supervisor"] == process.pid
        second = subprocess.run(line, capture_output=True, text=True)
        assert second.returncode == 2
        assert second.stderr == f"Error: The deployment d is already running, in process {process.pid}\n"
        process.terminate()
        assert process.wait(20) == 0
        assert process.stderr is not None and "[1] status: loading the model" in process.stderr.read()
