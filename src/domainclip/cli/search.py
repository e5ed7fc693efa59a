"""``domainclip search``: the images of a store that fit a text or an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from domainclip.cli.options import AsJson, Recipe, config_of, importing, print_json, warn
from domainclip.cli.predict import ModelFolder, check_file
from domainclip.cli.start_checks import check_model
from domainclip.errors import ConfigurationError


def search(
    queries: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUERY", help="A text, or the path of an image; several are several searches."),
    ] = None,
    index: Annotated[Path | None, typer.Option("--index", "-i", help="What `embed` has written.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="Images for each query.")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Only such rows: label=crack, path~line 3/, modified>=2026-01-31. May be repeated.",
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="exact, or nearly so and sooner among millions: turbovec, faiss (extras search, faiss).")
    ] = "exact",
    model: ModelFolder = None,
    sheet: Annotated[Path | None, typer.Option(help="The images found for the first query, a .png file.")] = None,
    duplicates: Annotated[
        float | None, typer.Option(min=0, max=1, help="Instead: all pairs of images at least so similar, such as 0.97.")
    ] = None,
    unlike: Annotated[
        Path | None,
        typer.Option(metavar="INDEX", help="Instead: the images that are least like those of another index."),
    ] = None,
    recipe: Recipe = None,
    as_json: AsJson = False,
) -> None:
    """The images that fit a text, or are like an image. Exact: what is nearest is found, whatever the number.

    Example: domainclip search "a cracked cell" --index embeddings --where label=defective
    """
    from domainclip.retrieval.store.where import Condition

    if index is None:
        raise ConfigurationError("No index: name what `domainclip embed` has written with --index")
    if sum([bool(queries), duplicates is not None, unlike is not None]) != 1:
        raise ConfigurationError("Give a query (a text or an image), or --duplicates, or --unlike: one of the three")
    conditions = [Condition.parse(each) for each in where or []]
    check_file(sheet, "--sheet", (".png",))
    if not queries:
        _without_query(index, top_k, duplicates, unlike, as_json)
        return
    config = config_of(recipe, None, model_name=model)
    if model is not None:
        check_model(config)
    with importing():
        from domainclip.pipelines.search import Query, run_search

    found = run_search(config, [Query.of(each) for each in queries], index, top_k, conditions, engine)
    if as_json:
        print_json(found.to_dict())
    else:
        found.print()
    if sheet is not None:
        from domainclip.files import writing
        from domainclip.pipelines.run_folder import output_file

        with output_file(sheet, [], warn), writing(f"--sheet {sheet}"):
            found.write_sheet(sheet, config.max_image_pixels)
        typer.echo(f"Written: {sheet}", err=as_json)


def _without_query(index: Path, top_k: int, duplicates: float | None, unlike: Path | None, as_json: bool) -> None:
    """Near duplicates within an index, or what is unlike another one: neither needs the model."""
    from itertools import islice

    from rich.console import Console

    from domainclip.pipelines.search import hit_table, hit_values
    from domainclip.retrieval.store.search import SearchableStore
    from domainclip.words import counted

    store = SearchableStore.open(index)
    if unlike is not None:
        hits = store.most_unlike(SearchableStore.open(unlike), top_k)
        if as_json:
            print_json(hit_values(hits))
        else:
            Console().print(hit_table(f"Least like {unlike}", hits))
        return
    assert duplicates is not None
    pairs = store.near_duplicates(duplicates)
    if as_json:
        print_json([{"image": first.path, "other": other.path, "score": score} for first, other, score in pairs])
        return
    shown = list(islice(pairs, top_k))
    for first, other, score in shown:
        typer.echo(f"{score:.4f}  {first.path}  {other.path}")
    rest = sum(1 for _ in pairs)
    typer.echo(
        f"{counted(len(shown) + rest, 'pair')} with a cosine of at least {duplicates:g}"
        + (f", {rest:,} not shown: --json gives all" if rest else "")
    )
