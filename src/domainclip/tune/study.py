"""The Optuna study on the disk: what it was started with, its trials as plain records, and what a kill left open."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from domainclip.errors import CheckpointError, ConfigurationError, MissingExtraError
from domainclip.reports.schema.tuning import FINISHED, TrialRecord

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial

STUDY_FILE = "study.db"
USUAL_TRIALS = 20
MOST_ATTEMPTS = 3
"""A trial that was killed this often (out of memory, most likely) is not tried again."""

Outcome = Literal["complete", "pruned", "diverged", "out_of_memory", "gave_up", "killed", "interrupted", "error"]


def require_optuna() -> None:
    """Make sure that Optuna is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("optuna", "tune", "Tuning a recipe") from error


def open_study(folder: Path, greater_is_better: bool) -> Study:
    """The study of a folder, made where there is none.

    Args:
        folder: where it lies.
        greater_is_better: of the metric.

    Returns:
        Optuna's study.

    Raises:
        CheckpointError: its file cannot be read.
    """
    import optuna
    from sqlalchemy.engine import URL

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / STUDY_FILE
    url = URL.create("sqlite", database=str(path.resolve())).render_as_string()
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        study = optuna.create_study(
            storage=storage,
            study_name="domainclip",
            load_if_exists=True,
            direction="maximize" if greater_is_better else "minimize",
        )
        sealed = study.user_attrs.get("checksums", {})
        damaged = [r.number for r in records(study) if sealed.get(str(r.number)) not in (None, _checksum_of(r))]
        if damaged:
            raise ValueError(f"trial {damaged[0]} is not as it was written")
        return study
    except Exception as error:  # in a damaged file Optuna stumbles in whatever way
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"{path} cannot be read as a study: {reason}. Start again with overwrite=True or another output directory"
        ) from error


def seal(study: Study) -> None:
    """Note a checksum of each trial that is over: SQLite has none, and a flipped bit would change what is found.

    Args:
        study: Optuna's.
    """
    study.set_user_attr("checksums", {str(r.number): _checksum_of(r) for r in records(study) if r.outcome != "running"})


def _checksum_of(record: TrialRecord) -> str:
    return hashlib.sha256(json.dumps(asdict(record), sort_keys=True, default=str).encode()).hexdigest()


def check_identity(study: Study, identity: Mapping[str, Any]) -> None:
    """Note what the study is of, or compare with what it was started with: trials of different tasks cannot be
    compared.

    Args:
        study: Optuna's.
        identity: what tells one task from another.

    Raises:
        ConfigurationError: something has changed; the message names it.
    """
    known = study.user_attrs.get("identity")
    if known is None:
        study.set_user_attr("identity", dict(identity))
        return
    changed = []
    for name in identity:
        if known.get(name) == identity[name]:
            continue
        if isinstance(identity[name], Mapping):
            before, now = known.get(name) or {}, identity[name]
            keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
            changed.append(f"{name} ({', '.join(keys) or 'order'})")
        else:
            changed.append(name if len(str(identity[name])) > 40 else f"{name} (was {known.get(name)})")
    if changed:
        raise ConfigurationError(
            f"This study was started with another {' and another '.join(changed)}: its trials cannot be compared with "
            "new ones. Resume with what it was started with, or use another output directory"
        )


def asked_trials(study: Study, trials: int | None) -> int:
    """How many trials a study shall have in the end, which it remembers for its resumption.

    Args:
        study: Optuna's.
        trials: what was asked for now; None for what was asked for before.

    Returns:
        Their number.
    """
    wanted = trials or study.user_attrs.get("trials") or USUAL_TRIALS
    study.set_user_attr("trials", wanted)
    return int(wanted)


def recover(study: Study) -> list[int]:
    """Close the trials that a kill left running, and line their parameters up again; returns their numbers.

    Args:
        study: Optuna's.

    Returns:
        Numbers of the trials.
    """
    from optuna.trial import TrialState

    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    for trial in running:
        attempts = trial.user_attrs.get("attempt", 1)
        again = attempts < MOST_ATTEMPTS
        reason = "the process was killed" if again else f"the process was killed {attempts} times with these parameters"
        fail(study, trial, "killed" if again else "gave_up", reason, again=again, attempt=attempts + 1)
    return [trial.number for trial in running]


def fail(
    study: Study, trial: Trial | FrozenTrial, outcome: Outcome, reason: str, *, again: bool, attempt: int | None = None
) -> None:
    """Close a trial without a value; ``again`` lines its parameters up for another try, before all new ones.

    Args:
        study: Optuna's.
        trial: what to close.
        outcome: how it ended.
        reason: why, in words.
        again: whether it is tried again.
        attempt: which attempt that is, from 1.
    """
    lined_up = any(other.user_attrs.get("retry_of") == trial.number for other in study.get_trials(deepcopy=False))
    if again and not lined_up:  # first this, then the state: killed in between, the next recovery finds both
        attributes = {"retry_of": trial.number, "attempt": attempt or trial.user_attrs.get("attempt", 1)}
        if trial.user_attrs.get("default"):
            attributes["default"] = True
        study.enqueue_trial(labels(study, trial.number), user_attrs=attributes)
    note(study, trial, outcome=outcome, reason=reason)
    from optuna.trial import TrialState

    study.tell(trial.number, state=TrialState.FAIL)


def labels(study: Study, number: int) -> dict[str, Any]:
    """A trial's parameters: those drawn, and those it was to be given when it was stopped before drawing them.

    Args:
        study: Optuna's.
        number: of the trial.

    Returns:
        Labels by key.
    """
    trial = study.get_trials(deepcopy=False)[number]
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def note(study: Study, trial: Trial | FrozenTrial, **attributes: Any) -> None:
    """Write attributes to a trial that may belong to a process that is gone.

    Args:
        study: Optuna's.
        trial: to write to.
        attributes: plain values by name.
    """
    for key, value in attributes.items():
        study._storage.set_trial_user_attr(trial._trial_id, key, value)  # FrozenTrial.set_user_attr writes nothing


def enqueue_default(study: Study, params: Mapping[str, Any]) -> None:
    """See to it that the recipe as it stands is tried, before anything else, unless it has been.

    Args:
        study: Optuna's.
        params: the recipe as a point of the space.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False):
        waiting = trial.state in (TrialState.WAITING, TrialState.RUNNING)
        if trial.user_attrs.get("default") and (waiting or trial.user_attrs.get("outcome") in FINISHED):
            return
    study.enqueue_trial(dict(params), user_attrs={"default": True})


def draw(study: Study, seed: int, trials: int) -> Trial:
    """The next trial: one that waits, or a new one.

    The sampler is seeded anew from ``seed`` and the number of trials there are. So a resumed study never repeats the
    draws it has made, and draws what it would have drawn had it not been stopped.

    Args:
        study: Optuna's.
        seed: of the recipe.
        trials: how many there shall be in the end.

    Returns:
        The trial.
    """
    import optuna

    count = len(study.get_trials(deepcopy=False))
    number = int.from_bytes(hashlib.sha256(f"{seed}:{count}".encode()).digest()[:4], "big")
    study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=max(4, min(10, trials // 3)))
    return study.ask()


def records(study: Study) -> list[TrialRecord]:
    """Every trial that has begun, in order.

    Args:
        study: Optuna's.

    Returns:
        One record a trial.
    """
    from optuna.trial import TrialState

    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.state == TrialState.WAITING:
            continue
        notes = trial.user_attrs
        outcome = "running" if trial.state == TrialState.RUNNING else notes.get("outcome", "error")
        valued = outcome in ("complete", "pruned") and trial.value is not None and math.isfinite(trial.value)
        found.append(
            TrialRecord(
                trial.number,
                outcome,
                trial.value if valued else None,
                notes.get("standard_error") if valued else None,
                dict(trial.params),
                notes.get("seconds", 0.0),
                notes.get("steps", 0),
                notes.get("reason", ""),
                bool(notes.get("default")),
                notes.get("retry_of"),
                dict(trial.intermediate_values),
            )
        )
    return found


def best_record(found: Sequence[TrialRecord], greater_is_better: bool) -> TrialRecord | None:
    """The best of the complete trials; the earliest of equals, so that the default wins a tie.

    Args:
        found: records of trials.
        greater_is_better: of the metric.

    Returns:
        The record; None where no trial is complete.
    """
    sign = 1 if greater_is_better else -1
    complete = [record for record in found if record.outcome == "complete" and record.value is not None]
    return max(complete, key=lambda record: (sign * (record.value or 0.0), -record.number), default=None)


def importances(study: Study, found: Sequence[TrialRecord]) -> dict[str, float]:
    """Fraction of each parameter in what tells good trials from bad ones (PED-ANOVA, Watanabe et al. 2023).

    Parameters that fewer than five complete trials have are left out. Empty with fewer than ten complete trials, or
    where all came out the same: there is nothing to explain then.

    Args:
        study: Optuna's.
        found: records of its trials.

    Returns:
        Fractions by key.
    """
    import optuna

    complete = [record for record in found if record.outcome == "complete"]
    if len(complete) < 10 or len({record.value for record in complete}) < 2:
        return {}
    drawn = Counter(key for record in complete for key in record.params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # few trials in a branch of the search: the report says so
        fractions = optuna.importance.get_param_importances(study, params=[key for key, n in drawn.items() if n >= 5])
    return {key: float(fraction) for key, fraction in fractions.items()}
