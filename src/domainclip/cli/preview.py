"""``domainclip data preview``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import Data, Domain, Recipe, Split, config_of, importing, recipe_keys, warn
from domainclip.cli.start_checks import check_model, check_start
from domainclip.errors import ConfigurationError
from domainclip.files import require_writable


def preview(
    overrides: Annotated[list[str] | None, recipe_keys("such as crop_scale=0.5")] = None,
    data: Data = None,
    domain: Domain = None,
    recipe: Recipe = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Resize as this model's processor does.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The sheet, a PNG file.")] = Path("preview.png"),
    split: Split = "train",
    images: Annotated[int, typer.Option("--images", "-n", min=1, max=100, help="How many images.")] = 6,
) -> None:
    """A sheet of what the model is shown: images as stored, after the domain's steps, and as training varies them.

    Example: domainclip data preview --data images.csv --domain medical
    """
    if output.suffix.lower() != ".png" or output.is_dir():  # said before the work, not after it
        raise ConfigurationError(f"--output {output} is not the name of a PNG file: let it end in .png")
    config = config_of(recipe, overrides, data_path=data, domain=domain, model_name=model)
    if config.is_set("model_name"):
        check_model(config, weights=False)
    check_start(config)
    require_writable(output, "--output", is_file=True)
    with importing():
        from domainclip.pipelines.preview import preview as make
        from domainclip.pipelines.run_folder import output_file, paths_read
    from domainclip.words import counted

    with output_file(output, paths_read(config), warn):
        made = make(config, split, images)
        made.write(output)
    for problem in made.skipped[:5]:
        typer.echo(f"Left out: {problem}", err=True)
    if len(made.skipped) > 5:
        typer.echo(f"… and {len(made.skipped) - 5} more", err=True)
    typer.echo(f"Written: {output} ({counted(made.images, 'image')})")
