"""``domainclip deploy``: serve a model at an address for good, and exchange it without a request lost."""

from __future__ import annotations

import os
import shlex
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from domainclip.cli.options import AsJson, print_json
from domainclip.errors import ConfigurationError
from domainclip.waiting import nothing_said


class DeployGroup(TyperGroup):
    """The group, whose command ``start`` need not be named: ``domainclip deploy MODEL --to local``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Take the arguments.

        Args:
            ctx: Of the group.
            args: All of them.

        Returns:
            What is left for a command.
        """
        if args and args[0] not in (*self.commands, "--help"):
            args = ["start", *args]
        return super().parse_args(ctx, args)


class Target(StrEnum):
    """What keeps the supervisor running."""

    local = "local"
    systemd = "systemd"
    launchd = "launchd"
    container = "container"


deploy_app = typer.Typer(
    cls=DeployGroup,
    no_args_is_help=True,
    help="Serve a model for good, and exchange it without a request lost: domainclip deploy MODEL --to local.",
)
_DEFAULT = "server"
Name = Annotated[str, typer.Option("--name", help="Of the deployment.")]
Index = Annotated[Path | None, typer.Option("--index", "-i", help="What `embed` has written, for searches.")]
Host = Annotated[str | None, typer.Option(help="The address to listen at; left out, this machine alone.")]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Left out, that of the deployment, or 8000.")]
ServeOptions = Annotated[
    list[str] | None, typer.Argument(metavar="[-- SERVE OPTIONS]", help="What else `serve` is given, after --.")
]


@deploy_app.callback()
def _group() -> None:
    """Serve a model for good, and exchange it without a request lost: domainclip deploy MODEL --to local."""


@deploy_app.command("start")
def start(
    model: Annotated[str, typer.Argument(help="The model's folder.")],
    options: ServeOptions = None,
    to: Annotated[
        Target, typer.Option("--to", help="local: a process in the background; the others write what they need.")
    ] = Target.local,
    name: Name = _DEFAULT,
    index: Index = None,
    host: Host = None,
    port: Port = None,
    watch: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="So long it is watched; if it fails, it is rolled back.")
    ] = 30.0,
    ready_within: Annotated[
        float, typer.Option("--ready-within", min=1, metavar="SECONDS", help="So long it has to get ready.")
    ] = 600.0,
    enable: Annotated[
        bool, typer.Option("--enable", help="With systemd and launchd: also start what was written.")
    ] = False,
    run_as: Annotated[
        str | None, typer.Option("--run-as", metavar="USER", help="With root's systemd: who the service runs as.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="With container: the folder; left out, domainclip-NAME.")
    ] = None,
    build: Annotated[
        bool, typer.Option("--build", help="With container: also build the image, by podman, docker or buildah.")
    ] = False,
) -> None:
    """Start a version beside the one that runs, check it, switch over, watch it, and roll back by itself.

    The word `start` may be left out. A name that is already deployed gets a new version at its address. Options of
    `serve` follow after two dashes. Exit code 2 where the new version has failed, and an earlier one or none serves.

    Example: domainclip deploy outputs/mine/model --to local --port 8000 -- --api-keys keys.txt
    """
    _only_with(to, {"--enable": enable, "--run-as": run_as}, Target.systemd, Target.launchd)
    _only_with(to, {"--output": output, "--build": build}, Target.container)
    found = _model(model)
    if index is not None and not index.is_dir():
        raise ConfigurationError(f"There is no index {index}: name what `domainclip embed` has written")
    if to is Target.container:
        _only_with(to, {"--host": host, "--port": port}, Target.local, Target.systemd, Target.launchd)
        _write_container(output or Path(f"domainclip-{name}"), found, index, options or [], build)
        return
    from domainclip.service.deploy.local import deploy
    from domainclip.service.deploy.units import install

    command = serve_command(found, index, options or [])
    if to is Target.local:
        report = deploy(name, found, command, host=host, port=port, watch_s=watch, ready_s=ready_within, say=_say)
    else:
        report = install(
            "systemd" if to is Target.systemd else "launchd",
            name,
            found,
            command,
            host=host,
            port=port,
            user=run_as,
            enable=enable,
            watch_s=watch,
            ready_s=ready_within,
            say=_say,
        )
    typer.echo(report)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _only_with(to: Target, given: dict[str, object], *targets: Target) -> None:
    for option, value in given.items():
        if value and to not in targets:
            names = " or ".join(targets)
            raise ConfigurationError(f"{option} goes with --to {names}, not with --to {to}: leave it out")


def _model(name: str) -> str:
    from domainclip.models.source.name import find_model

    found = find_model(name)
    return os.path.abspath(found) if os.path.isdir(found) else found


def _write_container(folder: Path, model: str, index: Path | None, options: list[str], build: bool) -> None:
    from domainclip.service.deploy.container import build_image, engine, write_container

    if not os.path.isdir(model):
        raise ConfigurationError(f"The model {model} is no folder, which alone can be mounted: download it first")
    write_container(folder, Path(model), index, options)
    typer.echo(f"Written: {folder}. Its .env holds the settings, and the password of Grafana")
    if build:
        build_image(folder)
    tool = "podman" if engine() == "podman" else "docker"
    typer.echo(
        f"Start it with:\n  cd {shlex.quote(str(folder))} && {tool} compose up -d\nDeploy another model with:\n"
        f"  {tool} compose exec server domainclip deploy /models/NAME"
    )


def serve_command(model: str, index: Path | None, options: list[str]) -> tuple[str, ...]:
    """What starts a server, with the Python of this process: a later version of the package is a version, too.

    Args:
        model: Its absolute folder, or its name.
        index: For searches.
        options: Further ones.

    Returns:
        The command.
    """
    searched = () if index is None else ("--index", os.path.abspath(index))
    return (sys.executable, "-m", "domainclip", "serve", "--model", model, *searched, *options)


@deploy_app.command("run")
def run(
    model: Annotated[
        str | None, typer.Argument(help="What is served where nothing was deployed yet: the model's folder.")
    ] = None,
    options: ServeOptions = None,
    name: Name = _DEFAULT,
    index: Index = None,
    host: Host = None,
    port: Port = None,
    log_file: Annotated[
        bool, typer.Option("--log-file", help="Log into the deployment's folder, not to the standard error.")
    ] = False,
) -> None:
    """Serve the last version of a deployment until a signal: what systemd, launchd and containers start.

    Example: domainclip deploy run --name server
    """
    from domainclip.service.deploy.local import deployments, note_down, status_of
    from domainclip.service.deploy.run import supervisor_command

    if model is not None and name not in deployments():
        found = _model(model)
        note_down(name, found, serve_command(found, index, options or []), host=host, port=port)
    status_of(name)  # refuses a name that is none, or somebody else's
    # The supervisor takes the place of this process, without the command line's imports: it stays for years.
    command = supervisor_command(name, log_file=log_file)
    with nothing_said():
        os.execv(command[0], command)


@deploy_app.command("status")
def status(
    name: Annotated[str | None, typer.Option("--name", help="Of the deployment; left out, all of them.")] = None,
    as_json: AsJson = False,
) -> None:
    """Which version serves, whether it is ready, and how the versions before it ended.

    Exit code 1 where a deployment is not ready.

    Example: domainclip deploy status
    """
    from domainclip.service.deploy.local import deployments, status_of

    found = [status_of(each) for each in ([name] if name is not None else deployments())]
    if as_json:
        print_json(found)
    elif not found:
        typer.echo("There is no deployment. Deploy a model with: domainclip deploy MODEL --to local")
    else:
        typer.echo("\n\n".join(_status_text(each) for each in found))
    raise typer.Exit(0 if all(each["health"].get("ready") for each in found) else 1)


def _status_text(found: dict[str, Any]) -> str:
    """The status of one deployment for a reader."""
    from domainclip.service.deploy.local import url_of
    from domainclip.words import counted

    url = url_of(found)
    health = found["health"]
    if found["supervisor"] is None:
        state = "not running"
    elif health.get("ready"):
        cosine = health.get("cosine")
        state = "ready" + (f", cosine {cosine:.5f} to its golden embeddings" if cosine is not None else "")
    else:
        state = f"not ready ({health.get('status') or found['doing'] or 'its server is being started'})"
    lines = [f"{found['name']}: {state}, at {url}"]
    if found["supervisor"] is not None:
        lines.append(
            f"  supervisor {found['supervisor']} since {_time(found['since'])}, "
            f"server {found['server'] or 'not running'}, {counted(found['restarts'], 'restart')}"
        )
    for each in reversed(found["versions"]):
        reason = each["reason"].splitlines()[0] if each["reason"] else ""
        lines.append(
            f"  version {each['number']:>3}  {each['outcome']:<11}  {_time(each['deployed'])}  {each['model']}"
            + (f"  {each['fingerprint'][:12]}" if each["fingerprint"] else "")
            + (f"  ({reason})" if reason else "")
        )
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@deploy_app.command("rollback")
def rollback(name: Name = _DEFAULT) -> None:
    """Start the version that served before, and switch over to it when it is ready.

    Example: domainclip deploy rollback
    """
    from domainclip.service.deploy.local import roll_back

    typer.echo(roll_back(name, say=lambda text: typer.echo(text, err=True)))


@deploy_app.command("stop")
def stop(name: Name = _DEFAULT) -> None:
    """Let the server finish what it has accepted, and end it and its supervisor.

    Example: domainclip deploy stop
    """
    from domainclip.service.deploy.local import stop as stop_deployment

    stop_deployment(name)
    typer.echo(f"{name} has ended. Its versions stay on record")
