"""``domainclip memory``: what fits before it is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from domainclip.cli.options import AsJson, Device, config_of, importing, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from domainclip.pipelines.memory_plan import MemoryPlan

memory_app = typer.Typer(no_args_is_help=True, help="See what fits into the memory there is.")


@memory_app.callback()
def _group() -> None:
    """See what fits into the memory there is."""


@memory_app.command("plan")
def memory_plan(
    model: Annotated[
        str, typer.Option("--model", "-m", help="Hub name, local directory, or a shape such as vit-b-32, vit-l-14-336.")
    ] = "vit-b-32",
    budget: Annotated[
        str | None, typer.Option("--budget", "-b", help="Memory allowed: 16GB, 12GiB, 500MB; left out, what is free.")
    ] = None,
    batch: Annotated[int, typer.Option("--batch", min=2, help="Contrastive batch, in pairs; it stays as asked.")] = 256,
    resolutions: Annotated[
        str | None, typer.Option("--resolutions", help="Resolutions in pixels: 224,336; left out, the model's own.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32, bf16 or fp16, or several: the first is preferred.")
    ] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, adafactor or adamw_8bit.")] = "adamw",
    text_length: Annotated[
        int | None, typer.Option("--text-length", min=4, help="Tokens of the longest captions; left out, at most 77.")
    ] = None,
    device: Device = None,
    lora: Annotated[
        bool | None, typer.Option("--lora/--no-lora", help="Only with LoRA adapters, or only without; left out, both.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What fits into a budget, micro-batch by precision, checkpointing and LoRA, and the recipe to take.

    Nothing is trained, and no weights are loaded. Exit code 1 where nothing fits.

    Example: domainclip memory plan --model vit-l-14-336 --budget 16GB
    """
    sizes = None if resolutions is None else _whole_numbers(resolutions)
    for name in precision.split(",") if precision else ():
        config_of(None, None, precision=name.strip())
    config_of(None, None, optimizer=optimizer)
    from domainclip.models.source.name import find_model, short_name

    if short_name(model) is None:  # the shape of a short name is known
        find_model(model, weights=False)
    from domainclip.devices import DeviceManager
    from domainclip.devices.memory import GB, read_memory
    from domainclip.devices.precision import choose_precision
    from domainclip.errors import ConfigurationError

    with importing():
        from domainclip.pipelines.memory_plan import make_plan, parse_size

    if device is not None and device not in ("cpu", "cuda", "mps"):
        raise ConfigurationError(f"Invalid device {device!r}: choose cpu, cuda or mps")
    allowed = None if budget is None else parse_size(budget)
    if device is None or allowed is None:
        chosen = DeviceManager(device=device).device
        preferred = choose_precision(chosen).name
        if allowed is None:
            allowed = int(float(read_memory(chosen)["available_gb"] or 0) * GB)
    else:  # another machine may be meant
        preferred = "bf16" if device == "cuda" else "fp32"
    wanted = [name.strip() for name in precision.split(",")] if precision else [preferred, _other(preferred)]
    plan = make_plan(
        model,
        allowed,
        batch=batch,
        resolutions=sizes,
        precisions=wanted,
        optimizer=optimizer,
        device_type=device or chosen.type,
        text_length=text_length,
        lora=lora,
    )
    if as_json:
        print_json(plan.to_dict())
    else:
        _show(plan)
    raise typer.Exit(0 if plan.recommended is not None else 1)


def _other(precision: str) -> str:
    return "bf16" if precision == "fp32" else "fp32"


def _whole_numbers(text: str) -> list[int]:
    from domainclip.errors import ConfigurationError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 16:
        raise ConfigurationError(
            f"Invalid --resolutions {text!r}: give resolutions in pixels from 16 on, such as 224,336"
        )
    return numbers


def _show(plan: MemoryPlan) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_table(plan))
    for note in plan.notes:
        console.print(note, markup=False)
    if plan.recommended is None:
        console.print(plan.reason, markup=False)
        return
    keys = " ".join(f"{key}={str(value).lower()}" for key, value in plan.recommended.items())
    console.print(f"Recommended: {keys}", markup=False)
    console.print(f"  {plan.reason}", markup=False)


def _table(plan: MemoryPlan) -> Table:
    from rich.table import Table

    from domainclip.devices.memory import GB

    table = Table(
        title=f"{plan.model} on {plan.device_type}, {plan.optimizer}: peak GB of a batch of {plan.batch},\n"
        f"by pairs in a micro-batch (* does not fit into {plan.budget_bytes / GB:.1f} GB)"
    )
    for name in ("Pixels", "Preci-\nsion", "Check-\npointing", "LoRA"):  # narrow: the table must fit into 80 columns
        table.add_column(name)
    micro_batches = list(dict.fromkeys(row.micro_batch for row in plan.rows))
    for micro_batch in micro_batches:
        table.add_column("all" if micro_batch == plan.batch else str(micro_batch), justify="right")
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for row in plan.rows:
        way = (
            str(row.resolution),
            row.precision,
            "yes" if row.gradient_checkpointing else "no",
            "yes" if row.lora else "no",
        )
        cell = f"{row.predicted_bytes / GB:.2f}"
        lines.setdefault(way, []).append(cell if row.fits else f"[red]{cell}*[/red]")
    for way, cells in lines.items():
        table.add_row(*way, *cells)
    return table
