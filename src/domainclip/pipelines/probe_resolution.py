"""Whether the images of few rows are read larger than the image tower was trained on, by what folds say of it.

A tower that is trained on random crops sees things larger than they are when it is used; shown larger images than it
was trained on, it sees them as in training (Touvron et al. 2019, "Fixing the train-test resolution discrepancy"). The
towers then train at their own resolution, which costs no more than before, and the projections are fitted at the larger
one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from domainclip.config import CLIPFinetuningConfig, FrozenConfig
from domainclip.config.resolution_settings import ResolutionSettings
from domainclip.data.dataset import CLIPDataset
from domainclip.data.images.store import ImageStore
from domainclip.data.records import ImageTextPair
from domainclip.inference import ModelSession
from domainclip.losses import build_loss
from domainclip.models.facts import model_facts
from domainclip.pipelines.assemble import build_probe, evaluated_view, training_captions
from domainclip.resolve import Decision, ResolvedRun
from domainclip.training.probe.choice import FEWEST_ROWS, FOLDS, cross_validated
from domainclip.training.probe.fit import Effort
from domainclip.training.probe.held_out import Difference, calibrated_surprise
from domainclip.words import counted

SCALE = 1.4
"""The larger resolution by the tower's own. Touvron et al. find the best between 1.15 and 1.5."""
ROWS = 500
"""Rows that are looked at; a second or two for each hundred on a CPU."""
EFFORT = Effort(300, 3e-4)


def may_be_larger(config: CLIPFinetuningConfig, session: ModelSession) -> bool:
    """Whether there is anything to decide: the recipe leaves the resolution open, and the image tower is convolutional.
    A transformer's position embeddings would have to be stretched, which frozen towers do not take well.

    Args:
        config: The user's recipe.
        session: The loaded model.

    Returns:
        False where the model's own resolution stays.
    """
    facts = model_facts(session.encoder)
    given = {"image_resolution", *ResolutionSettings.model_fields}
    asked = any(config.is_set(key) or key in session.domain.recipe_values() for key in given)
    rule = facts.resolutions
    return not asked and facts.image_tower_kind == "convolutional" and rule is not None and rule.multiple is not None


def larger_resolution(recipe: FrozenConfig, session: ModelSession, pairs: Sequence[ImageTextPair]) -> list[Decision]:
    """Decide ``image_resolution``, and with a larger one ``resolution_schedule``.

    Args:
        recipe: As the run will have it at the tower's own resolution.
        session: The loaded model, left as it is.
        pairs: The training rows.

    Returns:
        The decisions; none where projections are not fitted once more in the end, or folds would say nothing.
    """
    native, multiple = session.encoder.native_resolution, session.encoder.resolution_step
    larger = round(native * SCALE / multiple) * multiple
    if not recipe.compares_towers or larger <= native or len(pairs) < FEWEST_ROWS:
        return []
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(recipe.seed))[:ROWS].sort().values
    some = [pairs[row] for row in order.tolist()]
    found = [_surprise_at(resolution, recipe, session, some) for resolution in (native, larger)]
    if found[0] is None or found[1] is None or len(found[0]) != len(found[1]):
        return []
    gain = Difference.of(found[0], found[1])
    said = (
        f"{counted(len(some), 'row')} in {FOLDS} folds: {abs(gain.mean):.3f} ± {gain.standard_error:.3f} nats "
        f"{'less' if gain.mean > 0 else 'more'} surprise at {larger} pixels than at the tower's own {native}"
    )
    if gain.mean < -gain.standard_error:
        return [Decision("image_resolution", native, said)]
    return at_larger(larger, native, said)


def at_larger(larger: int, native: int, reason: str) -> list[Decision]:
    """What a larger resolution means.

    Args:
        larger: In pixels.
        native: Of the image tower.
        reason: Why it is taken.

    Returns:
        The decisions.
    """
    return [
        Decision("image_resolution", larger, reason),
        Decision("resolution_schedule", {0.0: native}, "the towers train at their own resolution"),
    ]


def _surprise_at(
    resolution: int, recipe: FrozenConfig, session: ModelSession, pairs: Sequence[ImageTextPair]
) -> Tensor | None:
    config = CLIPFinetuningConfig(
        **{**recipe.to_dict(), "image_resolution": resolution, "resolution_schedule": None}
    ).frozen()
    run = ResolvedRun(config, session.domain.with_steps(config.image_preprocessing, config.text_preprocessing))
    view, store = evaluated_view(run, session.processor), ImageStore(0, config.max_image_pixels)
    data = CLIPDataset(
        pairs, session.processor, config, view, images=store, **training_captions(run, session.processor)
    )
    loss = build_loss(run.objective, session.encoder.embedding_dim).to(session.device)
    probe = build_probe(session, run, loss, data, [])
    reading = probe.read() if probe is not None else ""
    if isinstance(reading, str) or not (folds := reading.rows.folds(FOLDS, recipe.seed)):
        return None
    parts = cross_validated(reading.fit_projections, folds, EFFORT)
    reading.fit_projections.reset()
    return calibrated_surprise(parts)
