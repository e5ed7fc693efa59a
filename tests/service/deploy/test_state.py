"""What is kept of a deployment, and whose it is."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("deployments are for POSIX systems", allow_module_level=True)

from domainclip.errors import DamagedFileError
from domainclip.service.deploy.state import DeploymentError, History, deployment_folder, state_root


@pytest.fixture
def history(tmp_path: Path) -> History:
    found = History(tmp_path, "127.0.0.1", 8000)
    for number in range(1, 4):
        assert found.add(f"m{number}", ("serve", f"m{number}"), "/").number == number
    found.mark({1: "replaced", 2: "in use"})
    found.mark({3: "failed"}, reason="its server ended")
    return found


def test_what_is_written_is_read_again(history: History) -> None:
    history.identify(2, "abc")
    found = History.read(history.folder)
    assert found == history
    assert [(each.number, each.outcome, each.reason, each.fingerprint) for each in found.versions] == [
        (1, "replaced", "", ""),
        (2, "in use", "", "abc"),
        (3, "failed", "its server ended", ""),
    ]
    assert found.current is not None and found.current.number == 2
    assert found.previous is not None and found.previous.number == 1


def test_a_reason_is_that_of_the_latest_outcome(history: History) -> None:
    history.mark({2: "rolled back", 1: "in use"}, reason="asked for")
    assert [each.reason for each in history.versions] == ["", "asked for", "its server ended"]
    assert history.previous is None


def test_a_long_history_keeps_what_serves_and_what_is_gone_back_to(history: History) -> None:
    for _ in range(200):
        history.mark({history.add("bad", ("serve",), "/").number: "failed"}, reason="no")
    numbers = [each.number for each in History.read(history.folder).versions]
    assert numbers[:2] == [1, 2] and numbers[-1] == 203 and len(numbers) < 60
    assert history.add("m", ("serve",), "/").number == 204


def test_no_deployment_and_a_damaged_one(history: History, tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="There is no deployment named other"):
        History.read(tmp_path / "other")
    path = history.folder / "deployment.json"
    path.write_text(path.read_text().replace("8000", "8001"))
    with pytest.raises(DamagedFileError, match=r"deployment\.json is damaged or was changed"):
        History.read(history.folder)


def test_where_deployments_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINCLIP_STATE", "/a")
    assert state_root() == Path("/a")
    monkeypatch.delenv("DOMAINCLIP_STATE")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert state_root() == Path("/var/lib/domainclip")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/b")
    assert state_root() == Path("/b/domainclip")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert state_root() == Path("/home/me/.local/state/domainclip")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "ä", "x" * 41, "a b", "a\n"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(DeploymentError, match="Invalid name"):
        deployment_folder(name)


def test_a_path_that_is_too_long_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOMAINCLIP_STATE", str(tmp_path / ("x" * 90)))
    with pytest.raises(DeploymentError, match=r"too long for the sockets.*set DOMAINCLIP_STATE"):
        deployment_folder("d", make=True)
    assert not list(tmp_path.iterdir())


def test_another_users_deployment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("DOMAINCLIP_STATE", str(tmp_path_factory.mktemp("s")))
    folder = deployment_folder("d", make=True)
    owner = folder.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1000)
    with pytest.raises(DeploymentError, match=r"is .*'s: ask them, or set DOMAINCLIP_STATE to a folder of your own"):
        deployment_folder("d")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert deployment_folder("d") == folder


def test_a_folder_that_others_could_look_into_is_closed(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("s")
    monkeypatch.setenv("DOMAINCLIP_STATE", str(root))
    (root / "d").mkdir(mode=0o777)
    assert deployment_folder("d").stat().st_mode & 0o777 == 0o700
