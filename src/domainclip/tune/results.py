"""What a study leaves for people and programs: ``trials.csv``, ``tuning.json``, ``tuning.md``, ``best.yaml``, plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.located_yaml import yaml_text, yaml_value
from domainclip.domains.recipes import recorded_recipe
from domainclip.files import csv_text, write_json, write_text
from domainclip.metrics.metric import METRICS
from domainclip.reports.plots.tune import plot_history, plot_importances, plot_slices
from domainclip.reports.render import plain
from domainclip.reports.schema.skipped import SkippedRow, skipped_counts
from domainclip.reports.schema.tuning import TrialRecord, TuningReport
from domainclip.reports.sections import skipped_lines
from domainclip.tune.space import Space
from domainclip.tune.study import STUDY_FILE
from domainclip.words import counted

TUNING_DOMAIN = "tuning_domain.yaml"
"""The domain of all trials, which the recipes beside it name."""

PARTS = (
    STUDY_FILE,
    "trials",
    "trials.csv",
    "tuning.md",
    "tuning.json",
    "tuning_recipe.yaml",
    TUNING_DOMAIN,
    "space.yaml",
    "best.yaml",
    "tuning_plots",
)
"""What a study writes into its folder: names that no training run uses."""


@dataclass(frozen=True)
class Tuning:
    """A study as it stands. ``best`` and ``default`` are complete trials, or None."""

    config: CLIPFinetuningConfig
    recipe: FrozenConfig
    space: Space
    metric: str
    greater_is_better: bool
    steps: int
    full_steps: int
    counts: dict[str, int]
    skipped: list[dict]
    asked: int = 0
    trials: list[TrialRecord] = field(default_factory=list)
    best: TrialRecord | None = None
    default: TrialRecord | None = None
    importances: dict[str, float] = field(default_factory=dict)

    def gain(self, record: TrialRecord | None) -> float | None:
        """How much better than the default, in the metric's own unit; positive is better.

        Args:
            record: a trial, or None.

        Returns:
            The difference; None where one of both has no value.
        """
        if record is None or record.value is None or self.default is None or self.default.value is None:
            return None
        return (record.value - self.default.value) * (1 if self.greater_is_better else -1)

    @property
    def noise(self) -> float:
        """Standard error of the metric on these validation rows: the larger of the best's and the default's."""
        return max((r.standard_error or 0.0 for r in (self.best, self.default) if r is not None), default=0.0)


def trial_line(record: TrialRecord, tuning: Tuning) -> str:
    """One trial on the console.

    Args:
        record: the trial.
        tuning: the study as it stands.

    Returns:
        The line.
    """
    value = "" if record.value is None else f"{tuning.metric} {record.value:.4f}  "
    params = "default recipe" if record.default else _params(record.params)
    state = record.outcome.replace("_", " ") + (f" at step {record.steps}" if record.outcome != "complete" else "")
    best = f"  best {tuning.best.value:.4f} (trial {tuning.best.number})" if tuning.best is not None else ""
    return f"Trial {record.number}: {value}{state}  {params}{best}"


def write_results(folder: Path, tuning: Tuning, *, plots: bool) -> None:
    """Renew every file from the study as it stands; ``plots``: also the images, the slowest part.

    Args:
        folder: of the study.
        tuning: the study as it stands.
        plots: also draw the images, which take longest.
    """
    write_text(folder / "trials.csv", _table(tuning))
    write_json(folder / "tuning.json", _report(tuning).to_dict())
    if tuning.best is not None:
        write_text(folder / "best.yaml", best_recipe(tuning))
    target = folder / "tuning_plots"
    if plots:
        plot_history(tuning.trials, tuning.metric, tuning.greater_is_better, target / "history.png")
        plot_importances(tuning.importances, target / "importances.png")
        plot_slices(tuning.trials, tuning.space.dimensions, tuning.metric, target / "slices.png")
    drawn = [name for name in ("history.png", "importances.png", "slices.png") if (target / name).is_file()]
    write_text(folder / "tuning.md", _markdown(tuning, drawn))


def best_recipe(tuning: Tuning) -> str:
    """The keys the user set and the best trial's parameters, as a recipe file: the trial's budget is no part of it.

    Args:
        tuning: a study with a best trial.

    Returns:
        The text of ``best.yaml``.
    """
    assert tuning.best is not None
    values = tuning.config.to_dict(only_set=True)
    values.pop("output_dir", None)
    values |= {"data_path": tuning.config.data_path, "model_name": tuning.config.model_name}
    if not tuning.best.default:
        values |= {
            key: yaml_value(value) if isinstance(value, str) and value[:1] in "[{" else value
            for key, value in tuning.best.params.items()
        }
    gain = tuning.gain(tuning.best)
    against = "" if gain is None else f", {gain:+.4f} against the default recipe (standard error {tuning.noise:.4f})"
    head = (
        f"# Trial {tuning.best.number}, the best of {_finished(tuning.trials)}: validation {tuning.metric} "
        f"{tuning.best.value:.4f} after {counted(tuning.best.steps, 'step')}{against}.\n"
    )
    return head + yaml_text(recorded_recipe(values, TUNING_DOMAIN), sort_keys=True)


def _finished(trials: Sequence[TrialRecord]) -> int:
    return sum(record.finished for record in trials)


def _params(params: dict[str, Any]) -> str:
    return " ".join(f"{key}={_short(value)}" for key, value in params.items())


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(tuning: Tuning) -> str:
    names = ["number", "state", "value", "standard_error", "gain_over_default", "seconds", "steps", "default"]
    names += ["retry_of", "reason", *tuning.space.to_dict()]
    rows = []
    for record in tuning.trials:
        own = {"state": record.outcome, "gain_over_default": tuning.gain(record), "seconds": round(record.seconds, 3)}
        values = {**record.params, **asdict(record), **own}
        rows.append([values.get(name) for name in names])
    return csv_text(names, rows)


def _report(tuning: Tuning) -> TuningReport:
    return TuningReport(
        metric=tuning.metric,
        greater_is_better=tuning.greater_is_better,
        model=tuning.config.model_name,
        data=tuning.config.data_path,
        rows=tuning.counts,
        steps=tuning.steps,
        full_steps=tuning.full_steps,
        trials_asked_for=tuning.asked,
        trials_finished=_finished(tuning.trials),
        space=tuning.space.to_dict(),
        best=None if tuning.best is None else tuning.best.number,
        default=None if tuning.default is None else tuning.default.number,
        gain=tuning.gain(tuning.best),
        standard_error=tuning.noise,
        importances=tuning.importances,
        skipped=[SkippedRow(**row) for row in tuning.skipped],
        skipped_counts=skipped_counts(tuning.skipped),
        trials=tuning.trials,
    )


def _markdown(tuning: Tuning, plots: Sequence[str]) -> str:
    states = Counter(record.outcome.replace("_", " ") for record in tuning.trials)
    lines = [
        f"# Tuning: {METRICS[tuning.metric].title}, validation split",
        "",
        f"- Model `{tuning.config.model_name}`, data `{tuning.config.data_path}`: "
        f"{counted(tuning.counts['train'], 'row')} for training, "
        f"{tuning.counts['validation']} for validation. The test split was not looked at.",
        f"- {_finished(tuning.trials)} of {counted(tuning.asked, 'trial')} are finished ("
        + ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        + f"), each of at most {counted(tuning.steps, 'step')} (the whole run has {tuning.full_steps}).",
    ]
    lines += [f"- {plain(line)}" for line in skipped_lines(skipped_counts(tuning.skipped))]
    lines += ["", "## Best against default", "", *_verdict(tuning)]
    ten = sorted(
        (r for r in tuning.trials if r.outcome == "complete" and r.value is not None),
        key=lambda r: (-(tuning.gain(r) or 0.0) if tuning.default else -(r.value or 0) * _sign(tuning), r.number),
    )[:10]
    if ten:
        lines += [
            "",
            "## The ten best" if len(ten) == 10 else "## Complete trials, best first",
            "",
            f"| trial | {tuning.metric} | against default | steps | seconds | parameters |",
            "|---:|---:|---:|---:|---:|---|",
        ]
        for record in ten:
            gain = tuning.gain(record)
            lines.append(
                f"| {record.number} | {record.value:.4f} | {'' if gain is None else f'{gain:+.4f}'} | {record.steps} | "
                f"{record.seconds:.1f} | {'the default recipe' if record.default else _cell(_params(record.params))} |"
            )
    lines += ["", "## What was searched", "", "| key | values | default |", "|---|---|---|"]
    for dimension in tuning.space.dimensions:
        spec = str(dimension).partition("=")[2]
        lines.append(f"| `{dimension.key}` | {_cell(spec)} | {_cell(_short(getattr(tuning.recipe, dimension.key)))} |")
    lines += ["", "## Importance of the parameters", ""]
    if tuning.importances:
        lines += [
            "Share in what sets the better trials apart (PED-ANOVA); with few trials a rough guide.",
            "",
            "| key | fraction |",
            "|---|---:|",
        ]
        lines += [f"| `{key}` | {fraction:.0%} |" for key, fraction in tuning.importances.items()]
    else:
        lines.append("Not shown: it takes ten complete trials that did not all come out the same.")
    failed = [record for record in tuning.trials if record.reason and record.outcome != "pruned"]
    if failed:
        lines += ["", "## Trials without a result", "", "| trial | state | step | reason |", "|---:|---|---:|---|"]
        lines += [f"| {r.number} | {r.outcome.replace('_', ' ')} | {r.steps} | {_cell(r.reason)} |" for r in failed]
    for name in plots:
        lines += ["", f"![{name.removesuffix('.png')}](tuning_plots/{name})"]
    if tuning.best is not None:
        lines += ["", "Next: `domainclip train --recipe best.yaml --output DIR`"]
    return "\n".join(lines) + "\n"


def _sign(tuning: Tuning) -> int:
    return 1 if tuning.greater_is_better else -1


def _verdict(tuning: Tuning) -> list[str]:
    """What the best is worth, in sentences that do not promise more than the rows can tell."""
    best, default, gain = tuning.best, tuning.default, tuning.gain(tuning.best)
    if best is None:
        return ["No trial has come to its end yet."]
    if gain is None or default is None:
        return [f"Trial {best.number} is best with {best.value:.4f}; the default recipe has no result to compare with."]
    lines = [
        f"| | trial | {tuning.metric} |",
        "|---|---:|---:|",
        f"| default recipe | {default.number} | {default.value:.4f} |",
        f"| best | {best.number} | {best.value:.4f} |",
        f"| difference | | {gain:+.4f} |",
        f"| standard error of the metric | | {tuning.noise:.4f} |",
        "",
    ]
    if best.default or gain <= 0:
        return [*lines, "No trial was better than the default recipe: keep it."]
    if gain <= tuning.noise:
        lines.append(
            "**The difference is within one standard error of the metric: these validation rows cannot tell the best "
            "trial from the default recipe.** More rows for validation, or more steps a trial, would."
        )
    elif tuning.noise:
        weak = ": a hint, no more" if gain < 2 * tuning.noise else ""
        lines.append(f"The difference is {gain / tuning.noise:.1f} standard errors of the metric{weak}.")
    lines.append(
        f"The best of {counted(_finished(tuning.trials), 'trial')} on the same rows looks better than it is: "
        "some of the "
        "difference is luck. Train both recipes in full and compare them on the test split."
    )
    if tuning.steps < tuning.full_steps:
        lines.append(
            f"A trial has {tuning.steps / tuning.full_steps:.0%} of the whole run's steps, and what learns fast early "
            "(a high learning rate, above all) is not always what ends best."
        )
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
