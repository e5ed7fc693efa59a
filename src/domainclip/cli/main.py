"""The ``domainclip`` command: one function per subcommand, imports inside, so that ``--help`` answers at once."""

from __future__ import annotations

import errno
import gc
import io
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.align import align_app
from domainclip.cli.bench import bench_app
from domainclip.cli.compare import compare
from domainclip.cli.deploy import deploy_app
from domainclip.cli.domain import domain_app
from domainclip.cli.embed import embed, export_embeddings
from domainclip.cli.export_metrics import export_metrics
from domainclip.cli.memory import memory_app
from domainclip.cli.notify import notify
from domainclip.cli.options import (
    AsJson,
    Data,
    Device,
    Domain,
    HomeGroup,
    KeyCommand,
    Model,
    Overrides,
    Recipe,
    Split,
    as_typed,
    config_of,
    importing,
    output_folder,
    parse_resolutions,
    print_json,
    warn,
)
from domainclip.cli.predict import predict
from domainclip.cli.preview import preview
from domainclip.cli.search import search
from domainclip.cli.serve import serve
from domainclip.cli.start_checks import check_model, check_recipe, check_start
from domainclip.cli.tune import tune
from domainclip.cli.watch import watch
from domainclip.errors import CLIPFinetuningError, ConfigurationError, DamagedFileError, Interrupted
from domainclip.files import require_writable
from domainclip.signals import StopSignals, leave_at_the_next
from domainclip.streams import StandardErrorHandler, keep_streams
from domainclip.waiting import Progress

app = typer.Typer(
    name="domainclip",
    cls=HomeGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Fine-tune CLIP for a specialised domain, on the machine you have.",
    epilog="First result: domainclip demo. With your own images: domainclip data check FILE, then "
    "domainclip train --data FILE.",
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        typer.echo(f"domainclip {installed('domainclip')}")
        raise typer.Exit


@app.callback()
def _command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    pass


config_app = typer.Typer(no_args_is_help=True, help="Show and check recipes.")
data_app = typer.Typer(no_args_is_help=True, help="Look at data before training on them.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(align_app, name="align", help="See whether images and texts agree.")
app.add_typer(deploy_app, name="deploy")
app.add_typer(domain_app, name="domain")
app.add_typer(memory_app, name="memory")


@app.command(cls=KeyCommand)
def train(
    overrides: Overrides = None,
    data: Data = None,
    model: Model = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="Folder for the run; left out, outputs.")] = None,
    recipe: Recipe = None,
    domain: Domain = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in the output folder.")] = False,
    accept_changed_data: Annotated[
        bool, typer.Option("--accept-changed-data", help="With --resume: go on although rows or images have changed.")
    ] = False,
) -> None:
    """Fine-tune a model on images with captions; evaluates before and after and writes a report.

    `--output DIR --resume` goes on with the recipe in DIR. With it may be given
    keys that change no weight, such as error_analysis=true, `--data` where the
    data have moved, and num_epochs for more epochs.

    Example: domainclip train --data images.csv --model vit-b-32 --output outputs/mine
    """
    if resume and not recipe:
        output = output_folder(output, overrides)
        saved, kept = Path(output) / "recipe.yaml", Path(output) / "domain.yaml"
        recipe = str(saved) if saved.is_file() else None
        if kept.is_file() and domain is None:  # as it was then, even where a shipped domain has changed since
            domain = str(kept)
        _require_whole(saved, kept)
        if recipe is None and not (Path(output) / "checkpoints").is_dir():  # of a run that was started from Python
            raise ConfigurationError(f"There is no run in {output} to resume: leave --resume out, or name its folder")
    config = config_of(recipe, overrides, data_path=data, model_name=model, output_dir=output, domain=domain)
    if resume and recipe is None and not config.is_set("data_path"):
        raise ConfigurationError(
            f"{output} holds checkpoints and no recipe.yaml of the run that they are of: put it back, or give the "
            "recipe with --recipe FILE"
        )
    if not resume:
        require_writable(Path(config.output_dir), "The output directory")
        check_model(config)
    if recipe is not None or not resume:  # a run that was started from Python says itself what is missing
        check_start(config)
    with importing():
        from domainclip.pipelines import run_training

    run_training(config, resume=resume, overwrite=overwrite, accept_changed_data=accept_changed_data)


def _require_whole(*files: Path) -> None:
    """Refuse a recipe or domain on record that is not as the run wrote it."""
    from domainclip.files import read_checked

    for path in files:
        if path.exists():
            try:
                read_checked(path)
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{error}. Put it back as it was, or give the recipe of the run with --recipe FILE (and --domain)"
                ) from None


@app.command(cls=KeyCommand)
def evaluate(
    overrides: Overrides = None,
    data: Data = None,
    model: Model = None,
    recipe: Recipe = None,
    domain: Domain = None,
    split: Split = "test",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the figures to this JSON file.")
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option(
            metavar="RESOLUTIONS",
            help="Resolutions in pixels, such as 96,128,160: compare them; plots beside --output.",
        ),
    ] = None,
    robustness: Annotated[
        bool | None,
        typer.Option("--robustness/--no-robustness", help="With --resolutions: also on corrupted images (default)."),
    ] = None,
    error_analysis: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write error_analysis.html there: hits, misses and confident errors."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Classification and retrieval of a model on a data set; also at several resolutions.

    Example: domainclip evaluate --data images.csv --model outputs/mine/model
    """
    if resolutions is not None and error_analysis is not None:
        raise ConfigurationError("--error-analysis shows one model at its own resolution: leave --resolutions out")
    config = config_of(recipe, overrides, data_path=data, model_name=model, domain=domain)
    wanted = None if resolutions is None else parse_resolutions(resolutions)
    if error_analysis is not None:
        require_writable(error_analysis, "--error-analysis")
    check_model(config)
    check_start(config)
    from domainclip.files import write_json, writing

    if robustness is not None and resolutions is None:
        raise ConfigurationError(
            "--robustness and --no-robustness go with --resolutions: give resolutions, such as 96,160"
        )
    if output is not None:
        require_writable(output, "--output", is_file=True)
    with importing():
        from domainclip.pipelines.run_folder import output_file, paths_read

    beside: list[str] = []
    if output is not None and resolutions is not None:
        from domainclip.pipelines.evaluate_resolutions import plot_places

        beside = [place.name for place in plot_places(output).values()]
    with output_file(output, paths_read(config), warn, beside):
        if wanted is not None:
            _evaluate_resolutions(config, wanted, split, robustness is not False, output, as_json)
            return
        with importing():
            from domainclip.pipelines.evaluate import run_evaluation

        report = run_evaluation(config, split, error_analysis)
        if output is not None:
            with writing(f"--output {output}"):
                write_json(output, report.to_dict())
    if as_json:
        print_json(report.to_dict())
    else:
        report.print()


def _evaluate_resolutions(  # type: ignore[no-untyped-def]
    config, wanted: list[int], split: str, robustness: bool, output: Path | None, as_json: bool
) -> None:
    with importing():
        from domainclip.pipelines.evaluate_resolutions import check_places, run_resolutions

    if output is not None:
        check_places(output)
    report = run_resolutions(config, wanted, split, robustness=robustness)
    if as_json:
        print_json(report.report.to_dict())
    else:
        report.print()
    if output is not None:  # last, so that figures which cannot be written were at least shown
        written = report.write(output)
        typer.echo("\n".join(f"Written: {path}" for path in written), err=as_json)


app.command("compare", cls=KeyCommand)(compare)
data_app.command("preview", cls=KeyCommand)(preview)
app.command("predict", cls=KeyCommand)(predict)
app.command("embed", cls=KeyCommand)(embed)
app.command("export-embeddings")(export_embeddings)
app.command("export-metrics")(export_metrics)
app.command("search", cls=KeyCommand)(search)
app.command("serve", cls=KeyCommand)(serve)
app.command("notify")(notify)
app.command("watch")(watch)
app.command("tune", cls=KeyCommand)(tune)


@app.command(cls=KeyCommand)
def demo(
    overrides: Overrides = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the demonstration.")] = Path(
        "outputs/demo"
    ),
) -> None:
    """Train a small CLIP from scratch on bundled images: no network, a few minutes.

    Example: domainclip demo --output outputs/demo
    """
    check_recipe(config_of(None, overrides))
    require_writable(output, "--output")
    from domainclip.config import parse_overrides

    with importing():
        from domainclip.demo import run_demo

    run_demo(output, parse_overrides(overrides or []))


@app.command()
def doctor(as_json: AsJson = False, device: Device = None) -> None:
    """Check this machine: device, versions, precision, and whether its numbers agree with the CPU's.

    Example: domainclip doctor
    """
    with importing():
        from domainclip.doctor import diagnose

    report = diagnose(device)
    if as_json:
        print_json(report.to_dict())
    else:
        typer.echo(report.render())
    raise typer.Exit(report.exit_code)


@config_app.command("show", cls=KeyCommand)
def config_show(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY|SECTION|KEY=VALUE", help="Keys or sections to explain; values to set."),
    ] = None,
    recipe: Recipe = None,
    domain: Domain = None,
    as_json: AsJson = False,
) -> None:
    """Every key with its value, where the value comes from, and what the key means.

    With the name of a key all that is known about it, with that of a section the keys of this section.

    Example: domainclip config show batch_size
    """
    from domainclip.cli.config_table import explanation, named_keys, recipe_rows, recipe_table

    names, values = [each for each in words or [] if "=" not in each], [each for each in words or [] if "=" in each]
    config = config_of(recipe, values, domain=domain)
    keys, sections = named_keys(names)
    rows = [row for row in recipe_rows(config) if not names or row["key"] in keys or row["section"] in sections]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console

    console = Console()
    for row in rows if keys else ():
        if row["key"] in keys:
            console.print(f"{explanation(row)}\n", markup=False, highlight=False)
    if sections or not names:
        console.print(recipe_table([row for row in rows if row["key"] not in keys]))


@config_app.command("validate", cls=KeyCommand)
def config_validate(
    recipe: Annotated[str, typer.Argument(help="A recipe's name or file.")], overrides: Overrides = None
) -> None:
    """Check a recipe; exit code 2 and the file's line when something is wrong.

    Example: domainclip config validate mine.yaml
    """
    from domainclip.domains import load_domain

    config = config_of(recipe, overrides)
    load_domain(config.domain)
    check_recipe(config, here=False)
    names = ", ".join(sorted(config.to_dict(only_set=True))) or "nothing"
    typer.echo(f"{recipe}: valid; sets {names}")


@data_app.command("check", cls=KeyCommand)
def data_check(
    path: Annotated[str, typer.Argument(help="A table, a directory, or hf:NAME.")],
    overrides: Overrides = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="Count tokens, and look for captions it does not know, with this model's tokenizer."
        ),
    ] = None,
    recipe: Recipe = None,
    domain: Domain = None,
    as_json: AsJson = False,
) -> None:
    """Broken images, duplicates, leakage, cut captions, class balance.

    Exit code 0 where `train` would take the data, whatever it would skip or warn of; 1 where it would refuse them, and
    2 for wrong arguments. With strict=true a row or image that would be skipped is an error, as it is to `train`.

    Example: domainclip data check images.csv --model vit-b-32
    """
    config = config_of(recipe, overrides, data_path=path, model_name=model, domain=domain)
    if model is not None:
        check_model(config, weights=False)
    if model is not None or not os.path.isfile(path):  # what is wrong with a file is a finding
        check_start(config)
    else:
        check_recipe(config)
    with importing():
        from domainclip.data.captions.pipeline import CaptionPipeline
        from domainclip.data.checks.check import check_data
    from domainclip.domains.recipes import caption_steps
    from domainclip.registry import load_plugins

    load_plugins(config.plugins)  # which may read the data
    captions = CaptionPipeline(caption_steps(config))
    count_tokens, vocabulary, limit = None, None, config.max_sequence_length
    if model is not None:
        with importing():
            from domainclip.models.loading import load_processor
            from domainclip.models.vocabulary import Vocabulary

        processor = load_processor(model)
        vocabulary = Vocabulary(processor.tokenizer)
        count_tokens, limit = processor.count_tokens, min(limit, processor.max_length)
    report = check_data(
        path,
        batch_size=config.batch_size,
        max_tokens=limit,
        count_tokens=count_tokens,
        vocabulary=vocabulary,
        image_col=config.image_col,
        caption_col=config.caption_col,
        label_col=config.label_col,
        group_col=config.group_col,
        split_col=config.split_col,
        image_root=config.image_root,
        caption_template=config.caption_template,
        strict=config.strict,
        max_pixels=config.max_image_pixels,
        text_transform=captions.rewritten,
        cut_by_sentence=captions.settings.truncation == "sentences",
    )
    if as_json:
        print_json(report.to_dict())
    else:
        from rich.console import Console

        console = Console()
        console.print(report.render(min(console.width, 100)), soft_wrap=True, highlight=False)
        given = [*(["--model", model or "vit-b-32"]), *(["--domain", domain] if domain else []), *(overrides or [])]
        following = shlex.join(["domainclip", "train", "--data", path, *given])
        again = f"mend the errors and check again, or train without what they name: {following}"
        console.print(
            f"Next: {again if report.exit_code else following}", soft_wrap=True, markup=False, highlight=False
        )
    raise typer.Exit(report.exit_code)


@app.command()
def version() -> None:
    """Print the version.

    Example: domainclip version
    """
    from importlib.metadata import version as installed

    typer.echo(installed("domainclip"))


def main() -> None:
    """Entry point: turns the package's errors into one line and exit code 2, signals into 130, 143 and 129."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold bytes that no encoding has
        sys.stdout.reconfigure(errors="backslashreplace")
    keep_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", handlers=[StandardErrorHandler()])
    try:
        with (
            StopSignals(at_once=True).watch(),
            Progress(None, "Working"),
        ):  # where nothing says what it is
            app()
    except Interrupted as stop:
        leave_at_the_next()
        typer.secho(as_typed(str(stop)), err=True)
        sys.exit(stop.exit_code)
    except CLIPFinetuningError as error:
        typer.secho(as_typed(f"Error: {error}"), fg="red", err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
            again = "--resume" if sys.argv[1:2] in (["train"], ["tune"]) else "give the same command again"
            what = f"the disk is full ({error}). What was saved is whole: free some space, then {again}"
        elif error.filename:  # the machine refuses a path: no fault of the program, which a traceback would look like
            what = f"{os.fsdecode(error.filename):.500}: {error.strerror}. Give another path, or mend its permissions"
        else:
            raise
        typer.secho(f"Error: {what}", fg="red", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.secho("Interrupted", err=True)
        sys.exit(130)
    finally:
        gc.freeze()  # Python would look through all objects once more before it ends, which takes seconds
