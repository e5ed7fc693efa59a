"""What holds the projections near their start while they learn from features: the towers' own two terms, for them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from domainclip.training.probe.draws import Draw, PairDraws
from domainclip.training.regularization.regularizers import distillation_penalty


class ProbeRestraint:
    """``l2sp`` times half the squared distance of the projections' weights from those they have now, and
    ``distillation`` as ``FeatureDistillation`` has it, from what the projections make of ``draws`` now. Logit scale and
    bias are left free."""

    def __init__(
        self, parameters: list[tuple[str, nn.Parameter]], draws: PairDraws, l2sp: float, distillation: float
    ) -> None:
        self.l2sp, self.distillation = l2sp, distillation
        self.held: list[tuple[nn.Parameter, Tensor]] = []
        self.start: tuple[Tensor, Tensor] | None = None
        if l2sp:
            self.held = [(p, p.detach().clone()) for name, p in parameters if name not in {"logit_scale", "logit_bias"}]
        if distillation:
            with torch.no_grad():
                self.start = draws.images.embed(), draws.texts.embed()

    def __call__(self, batch: Draw, images: Float[Tensor, "n dim"], texts: Float[Tensor, "n dim"]) -> Float[Tensor, ""]:
        """Both terms together, in the loss's units."""
        total = images.new_zeros(())
        for parameter, start in self.held:
            total = total + 0.5 * self.l2sp * (parameter - start).square().sum()
        if self.start is not None:
            pairs = (images, self.start[0][batch.images]), (texts, self.start[1][batch.texts])
            total = total + distillation_penalty(self.distillation, *pairs)
        return total
