"""``domainclip domain``: what is particular to a domain, and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from domainclip.cli.options import AsJson, print_json
from domainclip.errors import ConfigurationError
from domainclip.words import counted

domain_app = typer.Typer(no_args_is_help=True, help="List, show and write domains: what is particular to a domain.")


@domain_app.command("list")
def domain_list(as_json: AsJson = False) -> None:
    """The shipped domains.

    Example: domainclip domain list
    """
    from domainclip.domains.files import load_domain, shipped_domains

    rows = [{"name": name, "description": load_domain(name).description} for name in shipped_domains()]
    if as_json:
        print_json(rows)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(caption="domainclip domain show NAME says what each one chooses, and why")
    for column in ("name", "description"):
        table.add_column(column, no_wrap=column == "name")
    for row in rows:
        table.add_row(row["name"], row["description"])
    Console().print(table)


@domain_app.command("show")
def domain_show(
    domain: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A shipped domain, or a YAML file.")],
    as_json: AsJson = False,
) -> None:
    """Everything a domain chooses, with its reason and the file it stands in, what it inherits included.

    Example: domainclip domain show medical
    """
    from domainclip.domains.files import load_domain

    found = load_domain(domain)
    if as_json:
        content: dict[str, Any] = {
            "name": found.name,
            "description": found.description,
            "family": found.family,
            "extends": found.extends,
            "choices": [choice.to_dict() for choice in found.choices()],
        }
        print_json(content)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding

    console = Console(highlight=False)
    console.print(f"[bold]{escape(found.name)}[/bold]: {escape(found.description)}")
    inherits = f"; extends {', '.join(found.extends)}" if found.extends else ""
    console.print(f"Family: {found.family}{inherits}", markup=False)
    if not found.choices():
        console.print("It makes no choice of its own.")
        return
    for choice in found.choices():
        written, place = json.dumps(choice.value, ensure_ascii=False), f"  [{choice.place}]" if choice.place else ""
        console.print(f"\n[bold]{escape(choice.key)}[/bold]: {escape(written)}[dim]{escape(place)}[/dim]")
        if choice.because:
            console.print(Padding(escape(choice.because), (0, 0, 0, 2)))
    console.print("\nWhat is not named here is off, or decided at the start of a run.")


@domain_app.command("glossary")
def domain_glossary(
    glossary: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A shipped glossary, or a YAML file.")],
) -> None:
    """Print a shipped glossary, to be copied and changed, or check one of your own.

    Example: domainclip domain glossary medical
    """
    from domainclip.config.glossary import glossary_text, load_glossary, shipped_glossaries

    found = load_glossary(glossary)
    if glossary in shipped_glossaries():
        typer.echo(glossary_text(glossary), nl=False)
        return
    typer.echo(
        f"{glossary} is right: {counted(len(found.abbreviations), 'abbreviation')}, "
        f"{counted(len(found.synonyms), 'group')} of synonyms, "
        f"{counted(len(found.negation_pairs), 'negation pair')}.\nNext: texts: {{glossary: {glossary}}} in a "
        "domain's file"
    )


@domain_app.command("new")
def domain_new(
    name: Annotated[str, typer.Argument(help="What the domain is called.")],
    extends: Annotated[str, typer.Option("--extends", help="The domain it starts from: a name, or a YAML file.")] = (
        "general"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write; left out, NAME.yaml here.")
    ] = None,
) -> None:
    """Write a YAML file to edit: every key with its meaning, and what is inherited with its reason.

    Example: domainclip domain new mine --extends medical
    """
    import os

    from domainclip.config.domain_name import is_domain_path
    from domainclip.domains.files import load_domain, shipped_domains
    from domainclip.domains.template import domain_template
    from domainclip.files import write_text, writing

    name = name.removesuffix(".yaml").removesuffix(".yml")
    if name in shipped_domains():
        raise ConfigurationError(f"{name!r} is the name of a shipped domain: choose another, and --extends {name}")
    if output is None and (not name.strip() or name != Path(name).name):
        raise ConfigurationError(f"{name!r} cannot be the name of a file: choose another, or give --output")
    target = output or Path(f"{name}.yaml")
    if target.suffix not in (".yaml", ".yml"):
        raise ConfigurationError(f"--output {target} must end in .yaml, by which a domain's file is known")
    if os.path.lexists(target):
        raise ConfigurationError(f"{target} is there already, and would be overwritten: choose another --output")
    parent = load_domain(extends)
    start = target.absolute().parent
    named = os.path.relpath(Path(extends).absolute(), start) if is_domain_path(extends) else extends
    with writing(str(target)):
        write_text(target, domain_template(name, parent, Path(named).as_posix()))
    typer.echo(f"Written: {target}\nNext: edit it, then domainclip domain show {target}")
