"""Rules over logged steps, checkpoints and the clock: what ruins or slows a run in silence."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path

from domainclip.events import CheckpointSaved, Event, Noted, PhaseProgress, RunStarted, StepLogged
from domainclip.pace import RECENT, Pace
from domainclip.tracking.milestones.rule import Found, InARow, Rule, RunFacts

RANK_LEFT = 0.1
"""The fraction of its effective rank at the start below which a batch has collapsed."""
ALIKE = 0.95
"""A mean cosine between different images of a batch above this is a collapse, unless the run began near it."""
CLOSER = 0.2
"""A run that began with cosines near 1 (images of a narrow domain) has collapsed where so little of the distance to 1
is left."""
SAME = 0.9996
"""Above this all images look the same, however the run began."""
WAITING = 0.3
"""The fraction of the time that may go into waiting for data."""
MOVED = 0.2
"""The fraction of the time left by which the estimated end has to move."""
_FEW_STEPS = 20
_FIRST_STEPS = RECENT
"""Steps before the first estimate: the first ones read images and fill caches."""
_SHORT = 60.0  # seconds: nobody plans by less


class Collapse(InARow):
    """All images get nearly the same embedding."""

    name = "collapse"
    level = "warning"
    rule = (
        f"After the warm-up the effective rank of the batch's image embeddings is below {RANK_LEFT:.0%} of what it was "
        f"at the first logged step, or their mean cosine is above {ALIKE} and nearer to 1 than a fifth of the distance "
        f"at that step, or above {SAME}, at three logged steps in a row."
    )
    advice = "Lower learning_rate, lengthen warmup_steps, or start again from the pretrained weights"

    def __init__(self) -> None:
        super().__init__()
        self.first_rank: float | None = None
        self.first_cosine = 0.0

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, StepLogged) or event.batch_size < 2:
            return None
        rows = event.batch_size
        # Of unit vectors: their mean squared distance from the mean is 1 − ‖mean‖².
        cosine = 1 - event.embedding_spread * event.embedding_spread * rows / (rows - 1)
        if self.first_rank is None:
            self.first_rank, self.first_cosine = event.effective_rank, cosine
        if event.step <= facts.warmup_steps:
            return None
        limit = min(SAME, max(ALIKE, 1 - CLOSER * (1 - self.first_cosine)))
        if event.effective_rank >= RANK_LEFT * self.first_rank and cosine <= limit:
            return self.counted(None)
        evidence = {
            "effective_rank": event.effective_rank,
            "first_effective_rank": self.first_rank,
            "mean_cosine": cosine,
            "first_mean_cosine": self.first_cosine,
        }
        return self.counted(
            Found(
                f"image embeddings have collapsed: their effective rank is {event.effective_rank:.1f} after "
                f"{self.first_rank:.1f}, the mean cosine between images {cosine:.3f} after {self.first_cosine:.3f}",
                evidence,
            )
        )


class TemperatureClamped(InARow):
    """The model is as sure of itself as it may be."""

    name = "temperature_clamped"
    level = "warning"
    rule = "After the warm-up a trained logit_scale is at its largest value, at three logged steps in a row."
    advice = (
        "The model is over-confident, usually on captions it has learned by heart: train shorter, augment more, or fix "
        "temperature"
    )

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, StepLogged) or not facts.scale_trained or facts.largest_scale is None:
            return None
        if event.step <= facts.warmup_steps or event.logit_scale < 0.999 * facts.largest_scale:
            return self.counted(None)
        text = f"logit_scale is at its limit ({event.logit_scale:.0f})"
        return self.counted(Found(text, {"logit_scale": event.logit_scale, "limit": facts.largest_scale}))


class TemperatureLost(InARow):
    """Similarities hardly count any more."""

    name = "temperature_lost"
    level = "warning"
    rule = "After the warm-up a trained logit_scale is below 1, at three logged steps in a row."
    advice = "Lower learning_rate, or fix temperature"

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, StepLogged) or not facts.scale_trained:
            return None
        if event.step <= facts.warmup_steps or event.logit_scale >= 1:
            return self.counted(None)
        text = f"logit_scale fell to {event.logit_scale:.2f}: similarities hardly count any more"
        return self.counted(Found(text, {"logit_scale": event.logit_scale}))


class LossAtChance(InARow):
    """The loss is that of guessing."""

    name = "loss_at_chance"
    level = "warning"
    rule = (
        "After the warm-up the loss is not below 99 % of ln(batch), which guessing costs, at three logged steps in a "
        "row. Only of a cross-entropy, and where the batch's targets allow less than 90 % of it."
    )
    advice = "Raise learning_rate, unlock a tower, or look whether captions fit the images (`domainclip data check`)"

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, StepLogged) or event.batch_size < 2:
            return None
        chance = math.log(event.batch_size)
        # Only a cross-entropy tells it. Where nearly all rows are of one kind, the best there is lies near chance, too.
        floor = event.metrics.get("target_entropy")
        loss = event.metrics.get("loss", 0.0)
        judged = event.step > facts.warmup_steps and floor is not None and floor < 0.9 * chance
        if not judged or loss < 0.99 * chance:
            return self.counted(None)
        text = (
            f"the loss is {loss:.2f}, where guessing among {event.batch_size} costs {chance:.2f}: the model learns "
            "nothing"
        )
        return self.counted(Found(text, {"loss": loss, "chance": chance}))


class DataBound(InARow):
    """The model waits for its images."""

    name = "data_bound"
    level = "warning"
    rule = (
        f"Waiting for data takes more than {WAITING:.0%} of the time of a step, at five logged steps in a row after "
        "the warm-up and the first epoch, in which images are read for the first time."
    )
    advice = (
        "Raise num_workers, or image_cache_mb so that all decoded images fit, or store smaller images on a faster disk"
    )
    patience = 5

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, StepLogged):
            return None
        whole, waited = sum(event.seconds.values()), event.seconds.get("data", 0.0)
        late = event.step > facts.warmup_steps and event.epoch > 1
        if not late or whole <= 0 or waited <= WAITING * whole:
            return self.counted(None)
        text = f"{waited / whole:.0%} of the time goes into waiting for images"
        return self.counted(Found(text, {"seconds_data": waited, "seconds_step": whole, "fraction": waited / whole}))


class DiskShort(Rule):
    """The next checkpoints may not fit."""

    name = "disk_short"
    level = "warning"
    rule = "After a checkpoint less is free on its disk than twice its size."
    advice = (
        "Free some space, or lower keep_checkpoints; a checkpoint that cannot be written costs the steps since the last"
    )

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, CheckpointSaved):
            return None
        path = Path(event.path)
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        free = shutil.disk_usage(facts.folder).free
        if free >= 2 * size:
            return None
        text = f"{free / 1e6:,.0f} MB are free, and a checkpoint takes {size / 1e6:,.0f} MB"
        return Found(text, {"free_bytes": free, "checkpoint_bytes": size})


class Throttled(InARow):
    """The machine slows down to stay cool."""

    name = "throttled"
    level = "warning"
    rule = "The system says at three logged steps in a row that it runs slower to stay cool."
    advice = "Let it have air, or a cooler room. Until then its figures of speed are those of a hot machine"

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if not isinstance(event, Noted) or event.name != "energy":
            return None
        if not event.values.get("throttled"):
            return self.counted(None)
        return self.counted(Found("the machine throttles: it runs slower to stay cool", {"throttled": 1}))


class EtaMoved(Rule):
    """The run ends earlier or later than it seemed."""

    name = "eta_moved"
    rule = (
        f"The estimated end of the training has moved by more than {MOVED:.0%} of the time that was left, and by more "
        "than a minute, since it was first estimated or last announced."
    )
    again = True

    def __init__(self) -> None:
        self.pace: Pace | None = None
        self.expected_end: float | None = None  # both by time.monotonic: another start estimates anew
        self.left_then = 0.0
        self.begins = 0

    def state_dict(self) -> dict[str, object]:
        """Nothing is kept: another start of the run has a pace of its own."""
        return {}

    def look(self, event: Event, facts: RunFacts) -> Found | None:
        """See ``Rule.look``."""
        if isinstance(event, RunStarted):
            self.pace, self.expected_end, self.begins = Pace(event.total_steps, event.step), None, event.step
        if not isinstance(event, PhaseProgress) or event.name != "training" or self.pace is None:
            return None
        self.pace.observe(event.done)
        left = self.pace.seconds_left()
        if left is None or event.done % _FEW_STEPS or event.done - self.begins < _FIRST_STEPS:
            return None
        end = time.monotonic() + left
        if self.expected_end is None:
            self.expected_end, self.left_then = end, left
            return None
        moved = end - self.expected_end
        if abs(moved) <= max(MOVED * self.left_then, _SHORT):
            return None
        before, self.expected_end, self.left_then = self.left_then, end, left
        word = "later" if moved > 0 else "earlier"
        text = f"the training ends {abs(moved) / 60:.0f} min {word} than it seemed: {left / 60:.0f} min are left"
        return Found(text, {"moved_seconds": moved, "seconds_left": left, "seconds_left_then": before})
