"""What a container engine is given: files that agree with each other, and, where an engine is asked for, the image."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from domainclip.errors import ConfigurationError
from domainclip.service.deploy import container
from domainclip.service.deploy.state import DeploymentError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a model and an index, without the wheel, which takes seconds to build."""
    base = tmp_path_factory.mktemp("container")
    (base / "models" / "my model's").mkdir(parents=True)
    (base / "index").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "_source_folder", lambda: None)
        container.write_container(
            base / "out", base / "models" / "my model's", base / "index", ["--api-keys", "/models/my keys"]
        )
    return base / "out"


def settings(folder: Path) -> dict[str, str]:
    """The .env file as Compose reads it: within single quotes nothing but backslashes is replaced."""
    found = re.findall(r"^(\w+)='((?:[^'\\]|\\.)*)'$", (folder / ".env").read_text(), re.MULTILINE)
    return {name: re.sub(r"\\(.)", r"\1", value) for name, value in found}


def compose(folder: Path) -> dict[str, Any]:
    """compose.yaml with the variables in place, as Compose interpolates them."""
    values = settings(folder)

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match[1], match[2], match[3] or ""
        if values.get(name):
            return values[name]
        assert kind != ":?", f"{name} is needed and not in .env"
        return rest

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(each) for key, each in node.items()}
        if isinstance(node, list):
            return [filled(each) for each in node]
        return re.sub(r"\$\{(\w+)(?:(:-|:\?)([^}]*))?\}", value, node) if isinstance(node, str) else node

    found: dict[str, Any] = filled(yaml.safe_load((folder / "compose.yaml").read_text()))
    return found


def test_the_settings_are_whole_and_secret(written: Path) -> None:
    found = settings(written)
    assert len(found) == len((written / ".env").read_text().splitlines())
    assert found["MODEL"] == "my model's" and found["MODELS"].endswith("/models")
    assert len(found["GRAFANA_PASSWORD"]) >= 16
    assert (written / ".env").stat().st_mode & 0o777 == 0o600


def test_every_file_that_is_mounted_was_written(written: Path) -> None:
    services = compose(written)["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith(("/", ".")):
                assert (written / source).exists(), f"{name} mounts {source}"
    assert (written / services["server"]["build"]["dockerfile"]).is_file()


def test_the_server_is_closed_in(written: Path) -> None:
    server = compose(written)["services"]["server"]
    assert server["read_only"] is True and server["cap_drop"] == ["ALL"]
    assert server["ports"] == ["127.0.0.1:8000:8000"]
    assert all(volume.endswith(":ro") for volume in server["volumes"])


def test_prometheus_looks_for_its_neighbours(written: Path) -> None:
    found = yaml.safe_load((written / "monitoring" / "prometheus.yml").read_text())
    services = compose(written)["services"]
    targets = [each["static_configs"][0]["targets"] for each in found["scrape_configs"]]
    assert targets == [["server:8000"]]
    assert found["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"] == ["alertmanager:9093"]
    assert {"server", "alertmanager", "prometheus", "grafana"} == set(services)
    for name in found["rule_files"]:
        assert (written / "monitoring" / name).is_file()
    if shutil.which("promtool"):
        subprocess.run(["promtool", "check", "config", written / "monitoring/prometheus.yml"], check=True)
    json.loads((written / "monitoring" / "grafana-dashboard.json").read_text())


def test_the_command_is_one_of_ours(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the folder's name, and the server's options, whatever characters they have."""
    import typer

    from domainclip.cli.deploy import deploy_app

    words = shlex.split(compose(written)["services"]["server"]["command"])
    assert words[:2] == ["deploy", "run"]
    group = typer.main.get_command(deploy_app)
    context = group.commands["run"].make_context("run", words[2:])  # type: ignore[attr-defined]
    assert context.params["model"] == "/models/my model's"
    assert context.params["options"] == ["--index", "/index", "--api-keys", "/models/my keys"]
    assert context.params["host"] == "0.0.0.0" and context.params["port"] == 8000


def instructions(folder: Path) -> list[tuple[str, str]]:
    """The lines of the Containerfile, those that go on joined."""
    text = "\n".join(
        line for line in (folder / "Containerfile").read_text().splitlines() if not line.startswith("#")
    ).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in text.splitlines() if line.strip()]


def test_the_containerfile(written: Path) -> None:
    found = instructions(written)
    stages = [rest for name, rest in found if name == "FROM"]
    assert stages == ["${BASE_IMAGE} AS build", "${BASE_IMAGE}"]
    last = found[[name for name, _ in found].index("FROM", found.index(("FROM", stages[0])) + 1) :]
    assert not [name for name, _ in last if name == "RUN"], (
        "the final stage runs nothing, so it cannot install anything"
    )
    user = next(rest for name, rest in last if name == "USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user), "a number, so that an engine sees that it is not root"
    for name, rest in found:
        if name == "COPY" and "--from" not in rest:
            assert (written / rest.split()[0]).exists()
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)


def test_the_health_check(written: Path, deployment) -> None:  # type: ignore[no-untyped-def]
    check = next(rest for name, rest in instructions(written) if name == "HEALTHCHECK")
    program, flag, code = json.loads(check[check.index("[") :])
    assert (program, flag) == ("python3", "-c")
    deployment.deploy("a")

    def exit_code(port: int) -> int:
        return subprocess.run([sys.executable, flag, code.replace("8000", str(port))], capture_output=True).returncode

    assert exit_code(deployment.port) == 0
    assert exit_code(1) != 0
    deployment.deploy("b", "--sick", 0)
    assert exit_code(deployment.port) == 1


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is there already"):
        container.write_container(tmp_path, tmp_path, None, [])


def test_constraints_name_what_is_installed() -> None:
    lines = container._constraints().splitlines()
    assert any(re.fullmatch(r"torch==[\d.]+", line) for line in lines)
    assert not any("domainclip" in line or "+" in line for line in lines)


def test_an_image_without_an_engine_or_with_one_that_fails(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeploymentError, match=r"There is no container engine .*: install podman, docker, buildah"):
        container.build_image(written)
    engine = tmp_path / "podman"
    engine.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\nexit 1\n')
    engine.chmod(0o755)
    with pytest.raises(
        DeploymentError, match=r"The image was not built\. The command was: podman build --format docker"
    ):
        container.build_image(written)
    given = (tmp_path / "given").read_text().split()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"BASE_IMAGE=docker.io/library/python:{version}-slim" in given and given[-1] == str(written)


def pip_settings() -> tuple[str, list[str]]:
    """What pip is told on this machine, as a file for the build, and the folders that are named in it."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    pattern = r"^(?:global|:env:)\.(cert|find-links|index-url|extra-index-url)='(.*)'$"
    found = dict(re.findall(pattern, listed, re.MULTILINE))
    named = [word.removeprefix("file://") for value in found.values() for word in value.split()]
    folders = [str(Path(word).parent if Path(word).is_file() else word) for word in named if Path(word).exists()]
    folders += [str(Path(each).parent) for each in folders if each.rstrip("/").endswith("/simple")]  # with its files
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in found.items()), sorted(set(folders))


@pytest.mark.slow
def test_the_image_is_ready_as_its_own_user(zoo: dict[str, Path]) -> None:
    """Built and run where no engine runs: a base from Debian's packages, and Buildah in a chroot.

    The user of the image is none of this machine, so the model lies where everybody may read.
    """
    if not os.environ.get("DOMAINCLIP_TEST_IMAGE"):
        pytest.skip("set DOMAINCLIP_TEST_IMAGE=1 to build an image, which takes ten minutes and 8 GB")
    for tool in ("buildah", "podman", "mmdebstrap"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        storage = folder / "storage.conf"
        storage.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{name}/graph"\nrunroot = "{name}/run"\n')
        environment = {**os.environ, "CONTAINERS_STORAGE_CONF": str(storage), "BUILDAH_ISOLATION": "chroot"}

        def run(*words: object) -> str:
            done = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True)
            assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
            return done.stdout.strip()

        base = folder / "base.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", "--include=python3,python3-venv", "bookworm", base)
        run("podman", "import", "--quiet", base, "localhost/base")
        model = shutil.copytree(zoo["clip"], folder / "models" / "model")
        container.write_container(folder / "out", model, None, [])
        pip, mounts = pip_settings()
        (folder / "pip.conf").write_text(pip)
        volumes = [f"--volume={each}:{each}:ro" for each in mounts] + [f"--volume={folder}/pip.conf:/etc/pip.conf:ro"]
        index = os.environ.get("DOMAINCLIP_TEST_TORCH_INDEX")
        arguments = ["BASE_IMAGE=localhost/base", *([f"TORCH_INDEX={index}"] if index else [])]
        built = [part for each in arguments for part in ("--build-arg", each)]
        run("buildah", "build", "--format", "docker", *volumes, *built, "--tag", "domainclip", folder / "out")
        print(run("buildah", "images", "--format", "{{.Name}} {{.Size}}"))

        running = run("buildah", "from", "domainclip")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = ["domainclip", "deploy", "run", "--port", str(port), "/models/model"]
        server = ["buildah", "run", f"--volume={model}:/models/model:ro", running, "--", *words]
        with subprocess.Popen(server, env=environment) as process:
            try:
                check = next(rest for name, rest in instructions(folder / "out") if name == "HEALTHCHECK")
                check = json.loads(check[check.index("[") :])
                check[2] = check[2].replace("8000", str(port))
                until = time.monotonic() + 300
                while subprocess.run(["buildah", "run", running, "--", *check], env=environment).returncode:
                    assert process.poll() is None and time.monotonic() < until
                    time.sleep(2)
                assert run("buildah", "run", running, "--", "id", "-u") == "10001"
                assert run("buildah", "run", running, "--", "domainclip", "deploy", "status").startswith(
                    "server: ready"
                )
            finally:
                process.terminate()
