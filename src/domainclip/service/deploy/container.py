"""A folder from which a container engine builds and runs the server, with Prometheus, Alertmanager and Grafana."""

from __future__ import annotations

import secrets
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distributions
from importlib.resources import as_file, files
from pathlib import Path

from domainclip.errors import ConfigurationError
from domainclip.files import replaced_directory, write_text
from domainclip.service.deploy.state import DeploymentError

IMAGE = "localhost/domainclip"
_ENGINES = ("podman", "docker", "buildah")
_README = """\
Wheels in this folder are preferred to the index: domainclip's own, where it is not published, and others that the build
must not download, such as torch's.
"""


def write_container(folder: Path, model: Path, index: Path | None, options: list[str]) -> None:
    """Write all that a container engine needs.

    Args:
        folder: Made; must not be there yet.
        model: The first model that is served; its parent folder is mounted, so that others beside it can follow.
        index: Mounted, for searches.
        options: Further ones for ``serve``, such as ``--api-keys``.

    Raises:
        ConfigurationError: The folder is there already.
        DeploymentError: The wheel of this package cannot be built.
        OSError: It cannot be written.
    """
    if folder.exists():
        raise ConfigurationError(
            f"{folder} is there already, and may have been changed by hand: give another --output, or remove it"
        )
    searched = [] if index is None else ["--index", "/index"]
    settings = {
        "MODELS": str(model.resolve().parent),
        "MODEL": model.resolve().name,
        **({"INDEX": str(index.resolve())} if index is not None else {}),
        "SERVE_OPTIONS": shlex.join([*searched, *options]),
        "IMAGE": IMAGE,
        "BASE_IMAGE": f"docker.io/library/python:{sys.version_info.major}.{sys.version_info.minor}-slim",
        "TORCH_INDEX": "https://download.pytorch.org/whl/cpu",
        "EXTRAS": "serve",
        "ADDRESS": "127.0.0.1:8000",
        "GRAFANA_PASSWORD": secrets.token_urlsafe(12),
    }
    with replaced_directory(folder) as temporary:
        service = files("domainclip.service")
        for source, target in (("deploy/files", temporary), ("monitoring", temporary / "monitoring")):
            with as_file(service.joinpath(source)) as found:
                shutil.copytree(found, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("domainclip.s*"))
        config = temporary / "monitoring" / "prometheus.yml"
        write_text(config, _in_compose(config.read_text(encoding="utf-8")))
        (temporary / "wheels").mkdir()
        write_text(temporary / "wheels" / "README", _README)
        write_text(temporary / "constraints.txt", _constraints())
        write_text(temporary / ".env", "".join(f"{name}={_quoted(value)}\n" for name, value in settings.items()))
        (temporary / ".env").chmod(0o600)
        (temporary / "index").mkdir()
        if (project := _source_folder()) is not None:
            _build_wheel(project, temporary / "wheels")


def _in_compose(config: str) -> str:
    """Prometheus' configuration with the names that its neighbours have among containers."""
    for here, there in (("127.0.0.1:8000", "server:8000"), ("127.0.0.1:9093", "alertmanager:9093")):
        assert here in config
        config = config.replace(here, there)
    return config


def _quoted(value: str) -> str:
    """A value as an .env file has it, in single quotes: nothing within them is replaced."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _constraints() -> str:
    """The versions installed here, which are known to work together; without what tells one build from another."""
    versions = {
        each.name.lower(): each.version.partition("+")[0]
        for each in distributions()
        if each.name and each.name.lower() != "domainclip" and not each.read_text("direct_url.json")
    }
    return "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


def _source_folder() -> Path | None:
    """The project's folder, where this package is used from its sources and not installed from an index."""
    project = Path(__file__).parents[4]
    return project if (project / "pyproject.toml").is_file() else None


def _build_wheel(project: Path, wheels: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(project)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise DeploymentError(
            f"The wheel of {project} for the image cannot be built: {done.stderr.strip() or done.stdout.strip()}"
        )


def engine() -> str | None:
    """The container engine of this machine.

    Returns:
        podman, docker or buildah, the first that is installed; None where none is.
    """
    return next((each for each in _ENGINES if shutil.which(each)), None)


def build_image(folder: Path) -> None:
    """Build the image; the engine's output is printed as it comes.

    Args:
        folder: From ``write_container``.

    Raises:
        DeploymentError: There is no engine, or the build fails.
    """
    tool = engine()
    if tool is None:
        raise DeploymentError(f"There is no container engine to build {folder} with: install {', '.join(_ENGINES)}")
    settings = dict(line.split("=", 1) for line in (folder / ".env").read_text(encoding="utf-8").splitlines())
    arguments = [
        part
        for name in ("BASE_IMAGE", "TORCH_INDEX", "EXTRAS")
        for part in ("--build-arg", f"{name}={settings[name].strip(chr(39))}")
    ]
    # Docker's own format of images holds the health check, which the OCI's lacks.
    form = [] if tool == "docker" else ["--format", "docker"]
    command = [tool, "build", *form, *arguments, "--tag", IMAGE, "--file", str(folder / "Containerfile"), str(folder)]
    if subprocess.run(command).returncode:
        raise DeploymentError(f"The image was not built. The command was: {shlex.join(command)}")
