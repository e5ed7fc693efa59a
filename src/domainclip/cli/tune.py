"""``domainclip tune``: search a recipe's keys with short trials."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import (
    Data,
    Domain,
    Model,
    Recipe,
    config_of,
    importing,
    output_folder,
    recipe_keys,
)
from domainclip.cli.start_checks import check_model, check_name, check_start
from domainclip.errors import ConfigurationError, MissingExtraError


def tune(
    overrides: Annotated[list[str] | None, recipe_keys("the same for all trials")] = None,
    data: Data = None,
    model: Model = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="Folder for the study; left out, outputs.")
    ] = None,
    recipe: Recipe = None,
    domain: Domain = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Trials there shall be in the end; left out, 20, or those of a resumed study.", min=1),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Steps of each trial; left out, a fifth of the whole run's, at least 50.", min=1)
    ] = None,
    space: Annotated[
        Path | None, typer.Option("--space", help="YAML file of lines such as learning_rate: 1e-6..1e-4:log.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", "-s", metavar="KEY=RANGE", help="key=low..high, key=low..high:log, or key=a,b,c."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in the output folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the study in the output folder.")] = False,
) -> None:
    """Search a recipe's keys with short trials on the validation split; writes best.yaml and a report.

    Without `--space` and `--search` the learning rate, the temperature, the objective and its own keys are searched.
    `--output DIR --resume` with nothing else goes on with the study in DIR.

    Example: domainclip tune --data images.csv --model vit-b-32 --output outputs/tuned
    """
    if resume and not recipe:
        output = output_folder(output, overrides)
        saved = Path(output) / "tuning_recipe.yaml"
        if not saved.is_file():
            raise ConfigurationError(f"There is no study in {output} to resume: leave --resume out, or name its folder")
        recipe = str(saved)
    config = config_of(recipe, overrides, data_path=data, model_name=model, output_dir=output, domain=domain)
    if not resume:
        check_model(config)
    check_start(config)
    if find_spec("optuna") is None:
        raise MissingExtraError("optuna", "tune", "Tuning a recipe")
    from domainclip.config import parse_overrides
    from domainclip.tune.space import Space

    wanted = Space.from_file(space) if space is not None else None
    if search:
        wanted = (wanted or Space(())).merged(Space.from_options(search))
    for dimension in wanted.dimensions if wanted is not None and not config.plugins else ():
        for choice in dimension.choices or ():
            check_name(dimension.key, choice)
    with importing():
        from domainclip.tune.run import run_tuning

    run_tuning(
        config,
        wanted,
        trials=trials,
        steps=steps,
        fixed=parse_overrides(overrides or []),
        resume=resume,
        overwrite=overwrite,
    )
