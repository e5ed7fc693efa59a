"""The probe before the first step of a training and once more after its last.

Fine-tuning from a projection that does not fit bends the towers' features while the projection finds its place, most
where there are few rows (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution"). So the projections come first. During fine-tuning they learn at the towers' rate from a batch at
a time, and end behind the features they read; fitting the last layer anew on the finished features is the second stage
of "decoupled" training (Kang et al. 2020, "Decoupling Representation and Classifier for Long-Tailed Recognition";
Kirichenko et al. 2023, "Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from domainclip.config.probe_settings import ProbeSettings
from domainclip.errors import ShapeError
from domainclip.events import Noted, Number
from domainclip.models.dual_encoder import DualEncoder
from domainclip.training.probe.fit import Effort
from domainclip.training.probe.held_out import Difference, calibrating_scale
from domainclip.training.probe.probe import Probe, ProbeReading
from domainclip.training.probe.progress import ProbeProgress
from domainclip.training.state import Best, ProbeOutcome, TrainContext
from domainclip.training.validation import BestWeights, Evaluate
from domainclip.words import counted

START, HALF_WAY, END = 0.0, 0.5, 1.0
"""How far the towers are on the way from the weights that the training began with to those it ended with."""
_NAMES = {START: "frozen", HALF_WAY: "half-way", END: "trained"}


class ProbeStages:
    """Fits the projections before the first step, and after the last; then the model is chosen.

    The probes of the frozen, the half-way and the trained towers are fitted to the training rows, and compared on the
    validation rows, row by row. Of whichever is chosen the projections are then fitted to training and validation rows
    together, where the recipe wants that: a last layer has use for every row.

    Args:
        context: Of the training.
        encoder: In training.
        probe: Fits the projections, or None.
        settings: Whether it does before the first step, and after the last, and whether the result's projections are
            fitted to validation rows, too.
        evaluate: Validates the present weights; without it nothing is done after the last step.
        best: Where the weights go that the run ends with.
        progress: Makes, for a stage, the place where its work is saved.
    """

    def __init__(
        self,
        context: TrainContext,
        encoder: DualEncoder,
        probe: Probe | None,
        settings: ProbeSettings,
        evaluate: Evaluate | None,
        best: BestWeights,
        progress: Callable[[str], ProbeProgress],
    ) -> None:
        self.context, self.encoder, self.probe = context, encoder, probe
        self.first = probe is not None and bool(settings.probe_first)
        self.last = probe is not None and bool(settings.probe_last) and evaluate is not None
        self.fit_validation_rows = bool(settings.fit_validation_rows)
        self.evaluate, self.best, self.progress = evaluate, best, progress
        self.begun: ProbeProgress | None = None
        """Of the probe before the first step, in the process that has made it."""
        self._reading: ProbeReading | None = None

    @property
    def choose(self) -> bool:
        """Whether the model is chosen in the end, and not by each validation."""
        return self.first and self.last

    def begin(self) -> bool:
        """Fit the projections to the training rows before the first step. A run that goes on from a checkpoint has it
        behind it.

        Of several processes the first does it.

        Returns:
            Whether there is now a model to be validated as step 0.
        """
        context, state, probe = self.context, self.context.state, self.probe
        if probe is None or not self.first:
            return False
        self.begun = self.progress("probe_first") if context.processes.is_first else None

        def fit() -> dict[str, object]:
            with context.emitter.phase("probe_first"):
                self._fit_first(probe)
            return state.parts("probe_first", "probe_surprise", "skipped_images")

        state.load_state_dict(context.processes.on_first(fit))
        context.processes.broadcast_state(self.encoder)
        assert state.probe_first is not None
        return "skipped" not in state.probe_first

    def _fit_first(self, probe: Probe) -> None:
        state, started = self.context.state, time.monotonic()
        reading = probe.read(self.begun)
        if isinstance(reading, str):
            state.probe_first = {"skipped": reading}
            self._report("probe_first", state.probe_first, f"Probe first: left out ({reading})")
            return
        state.skipped_images |= reading.rows.skipped
        choice = reading.choose()
        reading.fit(reading.training, choice.effort)
        state.probe_first = ProbeOutcome(
            rows=len(reading.training),
            effort=choice.effort.to_dict(),
            folds=choice.folds,
            surprise=choice.surprise,
            accuracy=choice.accuracy,
        )
        state.probe_surprise = self._ask(reading, state.probe_first)
        state.probe_first["seconds"] = time.monotonic() - started
        self._reading = reading
        why = ""
        if choice.surprise is not None:
            why = (
                f", chosen in {choice.folds} folds of {counted(len(reading.rows), 'row')} ({choice.accuracy:.3f} right)"
            )
        self._report(
            "probe_first",
            state.probe_first,
            f"Probe first: {counted(len(reading.training), 'row')}, {_said(choice.effort)}{why}",
        )

    def keep_first(self) -> None:
        """Once the probe is validated: make the model that the run ends with if the towers gain nothing."""
        reading, self._reading = self._reading, None
        state = self.context.state

        def keep() -> dict[str, object]:
            if reading is not None and state.best is not None and self._fits_more(reading):
                self._keep_fitted_to_all(reading, state.best)
            return state.parts("best_files", "warnings")

        state.load_state_dict(self.context.processes.on_first(keep))

    def _keep_fitted_to_all(self, reading: ProbeReading, best: Best) -> None:
        to_training_rows = reading.fit_projections.values()
        reading.fit(torch.arange(len(reading.rows)), _effort(self.context.state.probe_first))
        self.best.keep(best)
        reading.fit_projections.put(to_training_rows)

    def _fits_more(self, reading: ProbeReading) -> bool:
        return self.fit_validation_rows and self.choose and len(reading.validation) > 0

    def end(self) -> None:
        """Fit the projections on the towers as the last step has left them, and on those half-way between there and the
        start. The model this makes is the result if it is chosen over the probe of the frozen towers (without that: if
        it validates no worse than the best before), and forgotten otherwise.

        Of several processes the first does it. A run resumed after its last step does it again, with the same outcome.
        """
        context, state, probe, evaluate = self.context, self.context.state, self.probe, self.evaluate
        if probe is None or not self.last or evaluate is None or not state.step:
            return

        def fit() -> dict[str, object]:
            with context.emitter.phase("probe_last"):
                self._fit_last(probe, evaluate)
            return state.parts("best", "best_files", "probe_last", "skipped_images", "warnings")

        state.load_state_dict(context.processes.on_first(fit))
        context.processes.broadcast_state(self.encoder)

    def _fit_last(self, probe: Probe, evaluate: Evaluate) -> None:
        state, started = self.context.state, time.monotonic()
        projections = [parameter.detach().clone() for _, parameter in probe.trained_parameters()]
        chosen = state.probe_surprise is not None and state.probe_first is not None
        trained = probe.towers() if chosen else {}
        effort = _effort(state.probe_first) if chosen else None
        surprises = {START: state.probe_surprise}
        readings: dict[float, ProbeReading] = {}
        fits: dict[float, list[Tensor]] = {}
        outcomes: dict[float, ProbeOutcome] = {}
        for fraction in (HALF_WAY, END) if chosen else (END,):
            probe.set_towers(trained, fraction)
            progress = self.progress(f"probe_last_{fraction:g}")
            reading = probe.read(progress)
            if isinstance(reading, str):
                probe.set_towers(trained, END)
                state.probe_last = {"skipped": reading}
                self._report("probe_last", state.probe_last, f"Probe last: left out ({reading})")
                return
            effort = effort or reading.choose().effort
            reading.fit(reading.training, effort)
            progress.clear()
            readings[fraction], fits[fraction] = reading, reading.fit_projections.values()
            outcomes[fraction] = ProbeOutcome(rows=len(reading.training), fraction=fraction, kept=False)
            surprises[fraction] = self._ask(reading, outcomes[fraction])
            state.skipped_images |= reading.rows.skipped
        best, why = chosen_fraction(surprises) if surprises.get(HALF_WAY) else (END, "trained towers")
        outcome = outcomes.get(best, ProbeOutcome(rows=len(readings[END].training), fraction=best, kept=False))
        if best and effort is not None:
            probe.set_towers(trained, best)
            readings[best].fit_projections.put(fits[best])
            why += ", " + self._keep(readings[best], effort, evaluate, outcome)
        outcome["seconds"] = time.monotonic() - started
        state.probe_last = outcome
        if not outcome["kept"]:
            probe.set_towers(trained, END)
            readings[END].fit_projections.put(projections)
        self._report("probe_last", outcome, f"Probe last: {counted(outcome['rows'], 'row')}, {why}")

    def _keep(self, reading: ProbeReading, effort: Effort, evaluate: Evaluate, outcome: ProbeOutcome) -> str:
        """Make the present weights, of the towers that were chosen, the result, if they validate; what came of it, in
        words."""
        state = self.context.state
        try:
            result = evaluate()
        except ShapeError:  # "… contain NaN": what was trained before stays
            return "its scores are not finite: the weights before stay"
        outcome["validation"] = result.value
        said = f"validation {result.primary} {result.value:.4f}"
        before = state.best if state.probe_surprise is None else None
        if before is not None and result.sign * result.value < result.sign * before["value"]:
            return f"{said}: the weights before stay"
        outcome["fitted_rows"] = len(reading.training)
        if self._fits_more(reading):
            reading.fit(torch.arange(len(reading.rows)), effort)
            outcome["fitted_rows"] = len(reading.rows)
            said += f"; then fitted to {counted(len(reading.rows), 'row')} with those of validation"
        outcome["kept"] = self.best.keep(result.at(state.step))
        return f"{said}, kept" if outcome["kept"] else f"{said}: the weights before stay"

    @staticmethod
    def _ask(reading: ProbeReading, outcome: ProbeOutcome) -> list[float] | None:
        """The surprise at each validation answer; ``outcome`` learns how sure of itself the model may be."""
        if len(reading.validation) < 2:
            return None
        held = reading.fit_projections.held_out(reading.validation)
        if len(held.logits) < 2:
            return None
        scale = calibrating_scale([held])
        surprise = held.surprise(scale)
        gain = Difference.of(held.surprise(), surprise)
        # Where every answer is right nothing says how sure it may be.
        clear = gain.mean > gain.standard_error and not bool(held.correct.all())
        outcome["confidence"] = scale if clear else 1.0
        return surprise.tolist()

    def _report(self, stage: str, outcome: ProbeOutcome, text: str) -> None:
        outcome["said"] = text
        values: dict[str, Number] = {}
        if "skipped" not in outcome:
            prefix = "probe" if stage == "probe_first" else stage
            flat = {**outcome.get("effort", {}), **outcome}
            numbers = {key: value for key, value in flat.items() if value is None or isinstance(value, int | float)}
            values = {f"{prefix}_{key}": value for key, value in numbers.items()}
            text += f", {outcome['seconds']:.1f} s"
        self.context.emitter.emit(Noted(name=stage, step=self.context.state.step, text=text, values=values))


def chosen_fraction(surprises: Mapping[float, list[float] | None]) -> tuple[float, str]:
    """Choose between the frozen towers, the trained ones and those half-way, each with projections fitted to it.

    Half-way is taken unless another surprises less by more than one standard error of the difference: there both keep
    what they are good at (Wortsman et al. 2022), and on few rows the better of two is mostly the luckier.

    Args:
        surprises: Of the fractions 0, ½ and 1 the nats at each answer in the same held-out rows.

    Returns:
        The fraction, and the reason.
    """
    found = {fraction: torch.tensor(values) for fraction, values in surprises.items() if values is not None}
    middle, gains = found[HALF_WAY], {}
    # Of a run that goes on with other validation rows the answers before have no partners.
    others = [each for each in (START, END) if each in found and len(found[each]) == len(middle)]
    for fraction in others:
        gain = Difference.of(middle, found[fraction])
        if gain.mean > gain.standard_error:
            gains[fraction] = gain.mean
    best = max(gains, key=lambda fraction: gains[fraction]) if gains else HALF_WAY
    means = ", ".join(f"{_NAMES[each]} {float(found[each].mean()):.3f}" for each in sorted([*others, HALF_WAY]))
    return best, f"{_NAMES[best]} towers by {counted(len(middle), 'held-out answer')} (nats of surprise: {means})"


def _effort(outcome: ProbeOutcome | None) -> Effort:
    assert outcome is not None
    return Effort(**outcome["effort"])


def _said(effort: Effort) -> str:
    balanced = ", rare classes weighted up" if effort.balanced else ""
    return f"{counted(effort.steps, 'step')} at {effort.learning_rate:g}{balanced}"
