"""Contrast in which the negatives that are hardest to tell from the positive count more.

Semi-hard: Schroff et al. 2015, "FaceNet", §3.2. Weights that grow with the similarity: Robinson et al. 2021,
"Contrastive Learning with Hard Negative Samples", eq. 4 (here bounded, so that one false negative cannot take over).
"""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor

from domainclip.errors import ConfigurationError
from domainclip.losses.contrastive import cross_entropy_rows
from domainclip.losses.objective import ContrastiveObjective, RowLoss, Rows, SharedKeywords
from domainclip.losses.registry import LOSSES

Strategy = Literal["semi-hard", "hard", "weighted"]


def hardest_fraction(scores: Tensor, allowed: Tensor, ratio: float) -> Tensor:
    """For each row the ⌈ratio · n⌉ highest of its n allowed entries, as a mask ``[c, B]``; equal ones by position.

    Args:
        scores: ``[rows, candidates]``.
        allowed: Which candidates may be taken, of the same shape.
        ratio: From 0 to 1.

    Returns:
        Which were taken, of the same shape.
    """
    order = scores.masked_fill(~allowed, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # In float32 9 % of 300 is a little more than 27, and ceil would make it 28.
    wanted = (allowed.sum(dim=1, keepdim=True) * ratio * (1 - 5e-7)).ceil()
    chosen = torch.arange(scores.shape[1], device=scores.device)[None, :] < wanted
    return torch.zeros_like(allowed).scatter(1, order, chosen)


def progressed(warmup: float, progress: float) -> float:
    """How much of the hardness applies: rises from 0 to 1 over the first ``warmup`` (fraction) of the training.

    Args:
        warmup: Fraction of the training over which it rises.
        progress: How much of the training is done, from 0 to 1.

    Returns:
        From 0 to 1.
    """
    return 1.0 if warmup <= 0 else min(1.0, progress / warmup)


class HardNegativeMiningLoss(ContrastiveObjective):
    """Cross-entropy in whose denominator a mined negative counts as ``1 + r(λ - 1)`` negatives:

        L_i  = Σ_j t_ij · ( log Σ_k a_ik e^{s_ik} - s_ij )        s = sim/τ, t: equal fractions for all positives
        a_ik = 1 + r (λ - 1) u_ik  for k mined, 1 otherwise        λ = hard_negative_weight ≥ 1
        r    = min(1, progress / hardness_warmup)                  the hardness comes in gradually

    ``hard``: the ``hard_negative_ratio`` most similar negatives are mined, u = 1. ``semi-hard``: of those negatives
    that are less similar than the query's own pair, since the ones above it are often mislabelled, u = 1. ``weighted``:
    as ``hard``, u_ik = exp(β (s_ik - max s_i·)), the maximum over the mined, in (0, 1], β = ``hardness_strength``.

    Positives (equal ``group_ids``) are no negatives, and a candidate whose embedding is that of the query's own pair
    (cosine above ``duplicate_similarity``) is never mined: it is the same thing under another row number.

    With λ = 1 it is the multi-positive loss exactly; it never falls as λ grows. Extras: ``hard_negative_count``
    (mined entries of both directions), ``hard_negative_ratio_actual`` (their fraction of all negatives),
    ``target_entropy``.
    """

    recipe_keys: ClassVar = {"mining_strategy": "hard_negative_mining_strategy"}

    def __init__(
        self,
        temperature: float = 0.07,
        hard_negative_ratio: float = 0.5,
        mining_strategy: Strategy = "semi-hard",
        hard_negative_weight: float = 2.0,
        *,
        hardness_strength: float = 1.0,
        hardness_warmup: float = 0.0,
        duplicate_similarity: float = 0.9999,
        **shared: Unpack[SharedKeywords],
    ) -> None:
        super().__init__(temperature, **shared)
        if mining_strategy not in get_args(Strategy):
            raise ConfigurationError(
                f"Invalid mining strategy {mining_strategy!r}: choose one of {', '.join(get_args(Strategy))}"
            )
        if not 0 <= hard_negative_ratio <= 1:
            raise ConfigurationError(f"Hard negative ratio must be in [0, 1] (it is {hard_negative_ratio!r})")
        if not hard_negative_weight >= 1:
            raise ConfigurationError(f"Hard negative weight must be at least 1 (it is {hard_negative_weight!r})")
        self.hard_negative_ratio = hard_negative_ratio
        self.mining_strategy = mining_strategy
        self.hard_negative_weight = hard_negative_weight
        self.hardness_strength = hardness_strength
        self.hardness_warmup = hardness_warmup
        self.duplicate_similarity = duplicate_similarity

    @torch.no_grad()
    def mine(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The mined negatives, and all negatives, as masks ``[c, B]``.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.

        Returns:
            Both masks.
        """
        negative = ~rows.positive
        own = rows.candidates[rows.index]
        allowed = negative & (own @ rows.candidates.T < self.duplicate_similarity)
        if self.mining_strategy == "semi-hard":
            allowed &= rows.scores < rows.own_scores()
        return hardest_fraction(rows.scores, allowed, self.hard_negative_ratio), negative

    def row_loss(self, rows: Rows) -> RowLoss:
        """Cross entropy in which mined negatives count more.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.

        Returns:
            A loss for each row, and sums of what the mined negatives are.
        """
        mined, negative = self.mine(rows)
        extra = torch.full_like(rows.logits, self.hard_negative_weight - 1) * mined
        extra = extra * progressed(self.hardness_warmup, rows.progress)
        if self.mining_strategy == "weighted":
            hard = rows.logits.detach().masked_fill(~mined, -torch.inf)
            top = hard.amax(dim=1, keepdim=True).nan_to_num(neginf=0.0)  # a row with nothing mined
            extra = extra * (self.hardness_strength * (hard - top)).exp().nan_to_num(nan=1.0)
        loss, metrics = cross_entropy_rows(rows.logits + torch.log1p(extra), rows.targets(), self.label_smoothing)
        return loss, {**metrics, "mined": mined.sum().to(loss.dtype), "negatives": negative.sum().to(loss.dtype)}

    def finish(self, extras: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
        """What is told of the mined negatives.

        Args:
            extras: Means over all rows of what ``row_loss`` gave besides the loss.
            rows: Their number, in both directions together.

        Returns:
            Their number, and which fraction of all negatives they are.
        """
        mined, negatives = extras.pop("mined"), extras.pop("negatives")
        return {
            **extras,
            "hard_negative_count": (mined * rows).round().long(),
            "hard_negative_ratio_actual": mined / negatives.clamp_min(torch.finfo(mined.dtype).tiny),
        }


LOSSES.register("hard_negative")(HardNegativeMiningLoss.from_settings)
