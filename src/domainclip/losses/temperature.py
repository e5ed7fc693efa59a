"""How the temperature of a contrastive objective changes during training."""

from __future__ import annotations

import inspect
import math
from typing import Any, get_args

from domainclip.config import TemperatureSettings
from domainclip.errors import CheckpointError, ConfigurationError
from domainclip.registry import nearest

SCHEDULES: tuple[str, ...] = get_args(TemperatureSettings.model_fields["temperature_schedule_type"].annotation)

AVERAGE_DECAY = 0.95
"""Weight of the past in adaptive's moving average: about the last twenty losses count."""
PATIENCE = 20
"""Losses that found adaptive's reference, and losses in a row that must lie clear of it before anything changes."""
CLEAR_CHANGE = 0.05
"""Fraction of the reference by which the averaged loss must have moved to count as falling or rising."""

# A model's logit_scale of ln 100 comes back from float32 or float16 weights as a temperature of 0.009997.
_ROUNDING = 1e-3


class TemperatureScheduler:
    """The temperature τ at each position k (optimizer steps done) of a training of K = ``total_steps``.

    With τ0 = ``initial_temp``, τmin, τmax, w = ``warmup_steps``, d = ``decay_rate``; beyond K as at K:

        constant      τ(k) = τ0
        warmup        τ(k) = τ0 + (τmax - τ0) · k/w                              for k ≤ w
                      τ(k) = τmin + (τmax - τmin) · ½(1 + cos(π (k-w)/(K-w)))    for k > w
        cosine        τ(k) = τ0                                                  for k ≤ w
                      τ(k) = τmin + (τ0 - τmin) · ½(1 + cos(π (k-w)/(K-w)))      for k > w
        exponential   τ(k) = τ0                                                  for k ≤ w
                      τ(k) = max(τmin, τ0 · d^(100 (k-w)/(K-w)))                 for k > w

    Warmup is soft first, while the embeddings still move a lot, and sharp at the end; with w = K it only rises, with
    w = 0 it falls from τ0. Without ``warmup_steps`` w is 1000, or a tenth of K where that is less.
    These are functions of the position alone, and take no notice of a loss.

    ``adaptive`` follows the loss given to ``step``. With L_n the n-th loss since the last change,

        m_n = (1 - b) Σ_i b^(n-i) L_i / (1 - b^n)        b = 0.95, i = 1 … n: the bias-corrected moving average
        r   = m_20                                       the reference, taken once twenty losses are in
        τ  ← max(τmin, τ d)   after 20 losses in a row with m_n < r - 0.05 |r|   (falls clearly: sharper)
        τ  ← min(τmax, τ / d) after 20 losses in a row with m_n > r + 0.05 |r|   (rises clearly: softer)

    Average and reference begin anew after each change, since the loss at another temperature is another number. So
    the temperature changes every 40 losses at the most. A step without a loss, or with one that is not finite, leaves
    the temperature and the average as they are: that training has diverged is for the loop to notice.

    At position 0 the temperature is ``initial_temp`` for every schedule, and it never leaves ``[min_temp, max_temp]``.
    ``warmup_steps`` does not matter to constant and adaptive.

    Raises:
        ConfigurationError: A temperature is ≤ 0, bounds are in the wrong order or leave ``initial_temp`` outside, the
            schedule is unknown, ``warmup_steps`` is below 0 or ``total_steps`` below 1, the warmup is longer than the
            training, or ``decay_rate`` is outside (0, 1).
    """

    _position: int
    _temperature: float
    _losses: int
    _average: float
    _reference: float | None
    _in_a_row: int

    def __init__(
        self,
        initial_temp: float = 0.07,
        min_temp: float = 0.01,
        max_temp: float = 0.1,
        warmup_steps: int | None = None,
        total_steps: int = 10000,
        schedule_type: str = "warmup",
        decay_rate: float = 0.95,
    ) -> None:
        numbers = {"warmup_steps": warmup_steps, "total_steps": total_steps, "decay_rate": decay_rate}
        for name, number in numbers.items():
            if number is not None and not isinstance(number, int | float):
                raise ConfigurationError(f"{name} must be a number ({name}={number!r})")
        for name, value in (("initial_temp", initial_temp), ("min_temp", min_temp), ("max_temp", max_temp)):
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ConfigurationError(f"Temperature must be positive ({name}={value!r})")
        if min_temp > max_temp:
            raise ConfigurationError(f"min_temp={min_temp:g} is above max_temp={max_temp:g}")
        if not min_temp <= initial_temp <= max_temp:
            raise ConfigurationError(
                f"initial_temp={initial_temp:g} is outside min_temp={min_temp:g} … max_temp={max_temp:g}: a schedule "
                "begins within its bounds. Start from another temperature or widen them"
            )
        if schedule_type not in SCHEDULES:
            guess = nearest(str(schedule_type), SCHEDULES)
            hint = f" Did you mean {guess!r}?" if guess else ""
            raise ConfigurationError(
                f"Invalid temperature schedule {schedule_type!r}.{hint} Known: {', '.join(sorted(SCHEDULES))}"
            )
        if not total_steps > 0:
            raise ConfigurationError(f"total_steps must be positive (total_steps={total_steps!r})")
        if warmup_steps is None:
            warmup_steps = min(1000, total_steps // 10)
        if not warmup_steps >= 0:
            raise ConfigurationError(f"warmup_steps must be zero or more (warmup_steps={warmup_steps!r})")
        if schedule_type in ("warmup", "cosine", "exponential") and warmup_steps > total_steps:
            raise ConfigurationError(
                f"warmup_steps={warmup_steps} is more than total_steps={total_steps}: the temperature would never "
                "come down. Shorten the warmup"
            )
        if not 0 < decay_rate < 1:
            raise ConfigurationError(f"decay_rate must be above 0 and below 1 (decay_rate={decay_rate!r})")
        self.initial_temp = float(initial_temp)
        self.min_temp = float(min_temp)
        self.max_temp = float(max_temp)
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.schedule_type = schedule_type
        self.decay_rate = decay_rate
        self.reset()

    def __repr__(self) -> str:
        settings = (f"{name}={getattr(self, name)!r}" for name in inspect.signature(type(self)).parameters)
        return f"TemperatureScheduler({', '.join(settings)})"

    @classmethod
    def from_settings(
        cls, settings: TemperatureSettings, initial_temp: float, total_steps: int
    ) -> TemperatureScheduler:
        """The schedule a recipe asks for; ``initial_temp`` is the model's own or the recipe's temperature.

        Where the recipe has no ``temp_warmup_steps``, the warmup is a tenth of ``total_steps``, one at least; cosine
        and exponential then begin at once. A temperature closer than a thousandth to a bound is taken for the bound:
        weights round their logit scale.

        Args:
            settings: The group of the recipe that is read.
            initial_temp: The temperature that the run begins with.
            total_steps: Of the run.

        Returns:
            At its first step.
        """
        for bound in (settings.min_temp, settings.max_temp):
            if math.isclose(initial_temp, bound, rel_tol=_ROUNDING):
                initial_temp = bound
        warmup = settings.temp_warmup_steps
        if warmup is None:
            warmup = max(1, total_steps // 10) if settings.temperature_schedule_type == "warmup" else 0
        return cls(
            initial_temp,
            settings.min_temp,
            settings.max_temp,
            warmup,
            total_steps,
            settings.temperature_schedule_type,
            settings.temp_decay_rate,
        )

    def step(self, step: int | None = None, loss: float | None = None) -> float:
        """Go to position ``step`` (one further where it is None) and return the temperature there.

        ``loss`` is that of the batch just trained on, and moves the adaptive schedule alone.

        Args:
            step: The number of the step; None: the next one.
            loss: Of the step, which the adaptive schedule follows.

        Returns:
            The temperature from here on.

        Raises:
            ConfigurationError: The position is negative.
        """
        if step is not None and step < 0:
            raise ConfigurationError(f"step must be zero or more (step={step!r})")
        self._position = self._position + 1 if step is None else step
        if self.schedule_type == "adaptive":
            if loss is not None and math.isfinite(loss):
                self._observe(float(loss))
        else:
            self._temperature = self._at(self._position)
        return self._temperature

    def get_temperature(self) -> float:
        """Say what the temperature is now.

        Returns:
            The temperature at the present position.
        """
        return self._temperature

    def state_dict(self) -> dict[str, Any]:
        """What ``get_state`` gives, under the name that all parts of a checkpoint use.

        Returns:
            Plain numbers and text.
        """
        return self.get_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What ``load_state`` does, under the name that all parts of a checkpoint use.

        Args:
            state: What ``state_dict`` gave.
        """
        self.load_state(state)

    def get_state(self) -> dict[str, Any]:
        """Position and temperature, and what the adaptive schedule remembers: numbers and text alone.

        Returns:
            Plain numbers and lists.
        """
        return {
            "schedule_type": self.schedule_type,
            "position": self._position,
            "temperature": self._temperature,
            "losses": self._losses,
            "average": self._average,
            "reference": self._reference,
            "in_a_row": self._in_a_row,
        }

    def reset(self) -> None:
        """Back to position 0 and ``initial_temp``."""
        self._position = 0
        self._temperature = self.initial_temp
        self._begin_average()

    def _begin_average(self) -> None:
        self._losses = 0
        self._average = 0.0  # without the bias correction
        self._reference = None
        self._in_a_row = 0  # losses in a row clear of the reference: above it positive, below it negative

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on exactly where ``get_state`` was taken.

        Args:
            state: What ``get_state`` gave.

        Raises:
            CheckpointError: For a state that does not fit.
        """
        missing = [key for key in self.get_state() if key not in state]
        if missing:
            raise CheckpointError(f"The temperature schedule's saved state lacks {', '.join(missing)}")
        if state["schedule_type"] != self.schedule_type:
            raise CheckpointError(
                f"The saved temperature schedule is {state['schedule_type']!r} and the recipe's is "
                f"{self.schedule_type!r}: resume with the recipe the run was started with"
            )
        if self.schedule_type == "adaptive" and not self.min_temp <= state["temperature"] <= self.max_temp:
            raise CheckpointError(
                f"The saved temperature {state['temperature']:g} is outside min_temp={self.min_temp:g} … "
                f"max_temp={self.max_temp:g}: resume with the recipe the run was started with"
            )
        self._position = state["position"]
        self._losses, self._average = state["losses"], state["average"]
        self._reference, self._in_a_row = state["reference"], state["in_a_row"]
        # A function of the position is worked out anew: the recipe may have been given more steps since.
        self._temperature = state["temperature"] if self.schedule_type == "adaptive" else self._at(self._position)

    def _at(self, position: int) -> float:
        after, rest = min(position, self.total_steps) - self.warmup_steps, self.total_steps - self.warmup_steps
        value = self.initial_temp
        if self.schedule_type == "warmup" and after < 0:
            fraction = position / self.warmup_steps
            value = (1 - fraction) * self.initial_temp + fraction * self.max_temp
        elif self.schedule_type == "warmup":
            value = self._cosine(self.max_temp if self.warmup_steps else self.initial_temp, after, rest)
        elif self.schedule_type == "cosine" and after > 0:
            value = self._cosine(self.initial_temp, after, rest)
        elif self.schedule_type == "exponential" and after > 0:
            value = self.initial_temp * self.decay_rate ** (100 * after / rest)
        return min(max(value, self.min_temp), self.max_temp)  # the last digit may round past a bound

    def _cosine(self, top: float, done: int, steps: int) -> float:
        weight = (1 + math.cos(math.pi * done / max(1, steps))) / 2
        return weight * top + (1 - weight) * self.min_temp

    def _observe(self, loss: float) -> None:
        self._losses += 1
        self._average = AVERAGE_DECAY * self._average + (1 - AVERAGE_DECAY) * loss
        average = self._average / (1 - AVERAGE_DECAY**self._losses)
        if self._reference is None:
            if self._losses == PATIENCE:
                self._reference = average
            return
        band = CLEAR_CHANGE * abs(self._reference)
        if average > self._reference + band:
            self._in_a_row = max(self._in_a_row, 0) + 1
        elif average < self._reference - band:
            self._in_a_row = min(self._in_a_row, 0) - 1
        else:
            self._in_a_row = 0
        if abs(self._in_a_row) == PATIENCE:
            factor = 1 / self.decay_rate if self._in_a_row > 0 else self.decay_rate
            self._temperature = min(max(self._temperature * factor, self.min_temp), self.max_temp)
            self._begin_average()
