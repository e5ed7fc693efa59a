"""``domainclip bench``: how many requests a service answers in time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from domainclip.cli.options import AsJson, print_json
from domainclip.errors import ConfigurationError, MissingFileError
from domainclip.files import require_writable

if TYPE_CHECKING:
    from rich.table import Table

    from domainclip.service.load_test.capacity import Capacity
    from domainclip.service.load_test.load_test import LoadTest
    from domainclip.service.load_test.outcomes import Trial

bench_app = typer.Typer(no_args_is_help=True, help="Measure a running service.")


@bench_app.callback()
def _group() -> None:
    """Measure a running service."""


@bench_app.command("serve")
def bench_serve(
    url: Annotated[str, typer.Option(help="Address of the service.")] = "http://127.0.0.1:8000",
    slo: Annotated[
        list[str] | None,
        typer.Option(metavar="OBJECTIVE", help="p95=100ms, p99=0.5s; may be repeated. Left out, p95=100ms."),
    ] = None,
    workload: Annotated[
        str, typer.Option(help="pairs, embeddings-text, embeddings-image, classify, search, or mix.")
    ] = "pairs",
    rate: Annotated[
        float | None, typer.Option(help="One trial at so many requests a second, in place of the search.")
    ] = None,
    clients: Annotated[
        int | None, typer.Option(min=1, help="One trial with so many clients that each wait for their answer.")
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", help="Measure the generator alone, against a server that computes nothing.")
    ] = False,
    duration: Annotated[
        float, typer.Option(help="Seconds of a trial that count; up to ten times more at low rates of the search.")
    ] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before these.")] = 2.0,
    start: Annotated[float, typer.Option(help="First rate of the search.")] = 4.0,
    tolerance: Annotated[float, typer.Option(help="How exactly the search ends, as a fraction.")] = 0.05,
    repeats: Annotated[int, typer.Option(min=1, help="Trials of a rate, of which most decide: an odd number.")] = 3,
    images: Annotated[Path | None, typer.Option(metavar="DIR", help="Images to send; left out, drawn ones.")] = None,
    repeat_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of requests that repeat an earlier content.")
    ] = 0.0,
    connections: Annotated[int, typer.Option(min=1, help="The most at once.")] = 512,
    timeout: Annotated[float, typer.Option(help="Seconds until nobody waits for an answer any more.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Of contents and arrivals.")] = 0,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Its first line is the API key.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write all figures to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """The highest rate at which a service keeps its objectives, by requests that come at random times.

    A latency counts from when a request was due, and one that is refused, fails or takes too long misses every
    objective. With `--rate` or `--clients` one trial is made, with `--null` one of the generator alone.

    Example: domainclip bench serve --slo p95=100ms --workload pairs
    """
    if sum([rate is not None, clients is not None, null]) > 1:
        raise ConfigurationError("Give one of --rate, --clients and --null")
    for name, value in (("--duration", duration), ("--timeout", timeout)):
        if not value > 0:
            raise ConfigurationError(f"{name} must be positive, got {value:g}: give seconds")
    if output is not None:
        require_writable(output, "--output", is_file=True)
    from domainclip.service.load_test.http_client import Target
    from domainclip.service.load_test.load_test import LoadTest
    from domainclip.service.load_test.slo import Slo
    from domainclip.service.load_test.trial import TrialSettings
    from domainclip.service.load_test.workload import Workload

    slos = [Slo.parse(each) for each in slo or ["p95=100ms"]]
    settings = TrialSettings(
        target=Target.of(url, _first_line(api_key_file)),
        workload=Workload(workload, images, seed, repeat_share),
        seconds=duration,
        warmup=warmup,
        timeout=timeout,
        connections=connections,
        seed=seed,
    )
    test = LoadTest(settings, slos, lambda trial: typer.echo(_line_of(trial), err=True))
    record: dict[str, Any] = {
        "url": url,
        "workload": workload,
        "objectives": [str(each) for each in slos],
        "duration_s": duration,
        "warmup_s": warmup,
        "timeout_s": timeout,
        "connections": connections,
        "repeated": repeat_share,
        "seed": seed,
    }
    if null:
        trials, conclusion = [test.of_generator()], ""
        record |= {"url": None, "mode": "null"}
        conclusion = _of_generator(trials[0])
    elif rate is not None or clients is not None:
        test.check()
        trials = [test.at_rate(rate) if rate is not None else test.with_clients(clients or 1)]
        record |= {"mode": "rate" if rate is not None else "clients"}
        conclusion = _of_trial(trials[0])
    else:
        test.check()
        capacity = test.highest_rate(start, tolerance, repeats)
        trials = capacity.trials
        record |= {"mode": "search", "tolerance": tolerance, "repeats": repeats}
        record |= {"rate": capacity.rate, "missed_rate": capacity.missed_rate, "passed": capacity.passed}
        conclusion = _of_search(capacity, test)
    record["trials"] = [trial.to_dict() for trial in trials]
    _show(record, trials, conclusion, output, as_json)


def _show(record: dict[str, Any], trials: list[Trial], conclusion: str, output: Path | None, as_json: bool) -> None:
    if as_json:
        print_json(record)
    else:
        from rich.console import Console

        console = Console(highlight=False)
        console.print(_table(f"{record['workload']}, {', '.join(record['objectives'])}", trials))
        console.print(conclusion, markup=False, soft_wrap=True)
    if output is not None:
        from domainclip.files import write_json, writing

        with writing(f"--output {output}"):
            write_json(output, record)
        typer.echo(f"Written: {output}", err=as_json)


def _first_line(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise MissingFileError(f"--api-key-file {path}: no such file") from None
    if not lines:
        raise ConfigurationError(f"--api-key-file {path} is empty: its first line has to be the API key")
    return lines[0]


def _line_of(trial: Trial) -> str:
    loop = f"{trial.rate:,.4g}/s" if trial.rate is not None else f"{trial.clients} clients"
    objectives = ", ".join(
        f"{name.split('=')[0]} {'∞' if each['ms'] is None else format(each['ms'], '.1f')} ms"
        for name, each in trial.objectives.items()
    )
    verdict = "kept" if trial.is_met else "missed"
    return f"{loop}: {objectives}, {verdict}; {trial.throughput:,.1f} answers/s"


def _of_generator(trial: Trial) -> str:
    return (
        f"The generator alone: {trial.throughput:,.0f} requests/s, {trial.generator_ms or 0:.3f} ms of processor time "
        "for each."
    )


def _of_trial(trial: Trial) -> str:
    kept = "kept" if trial.is_met else "missed"
    return (
        f"{trial.throughput:,.1f} answers/s, {trial.goodput or 0:,.1f}/s in time: the objectives are {kept}. "
        f"The generator took {trial.generator_cpu:.1%} of a core."
    )


def _of_search(capacity: Capacity, test: LoadTest) -> str:
    names = ", ".join(map(str, test.slos))
    if capacity.rate is None:
        return f"No rate keeps {names}: {capacity.missed_rate:.3g} requests/s is too much."
    trials = capacity.at_rate
    good = sorted(trial.goodput or 0 for trial in trials)
    above = "no higher rate was tried" if capacity.missed_rate is None else f"{capacity.missed_rate:,.4g}/s does not"
    return (
        f"Highest rate that keeps {names}: {capacity.rate:,.4g} requests/s, in {capacity.passed} of "
        f"{len(trials)} trials ({above}). Goodput {good[0]:,.1f} to {good[-1]:,.1f} answers/s; the generator took "
        f"{max(trial.generator_cpu for trial in trials):.1%} of a core."
    )


def _table(title: str, trials: list[Trial]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=f"{title}; latencies in ms", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("Load", "p50", "p95", "p99", "In time/s", "200", "429", "5xx", "Other", "Kept"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        server = sum(n for status, n in trial.statuses.items() if status.startswith("5"))
        good, refused = (trial.statuses.get(status, 0) for status in ("200", "429"))
        table.add_row(
            f"{trial.rate:,.4g}/s" if trial.rate is not None else f"{trial.clients} clients",
            *(f"{trial.latency_ms[name]:,.1f}" if trial.latency_ms else "–" for name in ("p50", "p95", "p99")),
            "–" if trial.goodput is None else f"{trial.goodput:,.1f}",
            *(f"{n:,}" for n in (good, refused, server, trial.requests - good - refused - server)),
            "yes" if trial.is_met else "no",
        )
    return table
