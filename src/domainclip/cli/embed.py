"""``domainclip embed``: the embeddings of all images of some data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, Domain, Recipe, config_of, importing, print_json
from domainclip.cli.predict import Images, ModelFolder, images_and_keys, required_model
from domainclip.cli.start_checks import check_model, check_recipe
from domainclip.errors import ConfigurationError
from domainclip.files import require_writable


def embed(
    data: Images = None,
    model: ModelFolder = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the embeddings.")] = None,
    float16: Annotated[
        bool, typer.Option("--float16", help="Half the size on disk, three digits of each number.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes that embed at the same time.")] = 1,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Ray cluster with these folders: auto, local, ray://…."),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try unreadable files again that have not changed.")] = False,
    domain: Domain = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """Embed all images of folders and tables, or bring earlier embeddings up to data that have changed.

    The folder then holds these images and no others: what was renamed or copied is found by its content and costs
    nothing. Killed, it goes on with the same command. The same command on further machines, with the same folders,
    shares the work.

    Example: domainclip embed photos/ --model outputs/mine/model --output embeddings
    """
    given, overrides = images_and_keys(data or [])
    config = config_of(recipe, overrides, model_name=required_model(model), domain=domain)
    if output is None:
        raise ConfigurationError(
            "No place for the embeddings: name a folder with --output, such as --output embeddings"
        )
    require_writable(output, "--output")
    check_model(config)
    check_recipe(config)
    with importing():
        from domainclip.pipelines.embed import run_embedding
        from domainclip.pipelines.run_folder import refuse_among_data

    refuse_among_data(output, [("DATA", each) for each in given])
    found = run_embedding(
        config, given, output, dtype="float16" if float16 else "float32", workers=workers, ray=ray, retry=retry
    )
    if as_json:
        print_json(found.to_dict())
    else:
        typer.echo("\n".join(found.lines()))


def export_embeddings(
    store: Annotated[Path, typer.Argument(metavar="EMBEDDINGS", help="What `embed` has written.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="A .npy file (NumPy), a .lance folder, or a .copy file (PostgreSQL with pgvector)."
        ),
    ],
) -> None:
    """Embeddings in the form that another program reads.

    Example: domainclip export-embeddings embeddings --output embeddings.npy
    """
    from domainclip.files import writing
    from domainclip.retrieval.store.export import export
    from domainclip.retrieval.store.store import EmbeddingStore

    require_writable(output, "--output", is_file=output.suffix.lower() != ".lance")
    with writing(f"--output {output}"):
        typer.echo("\n".join(export(EmbeddingStore.open(store), output)))
