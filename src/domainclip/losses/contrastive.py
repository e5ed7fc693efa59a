"""The symmetric cross-entropy of CLIP, with one positive per row or several.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3;
several positives as in Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space" (UniCL), eq. 3-4.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from domainclip.losses.objective import ContrastiveObjective, RowLoss, Rows
from domainclip.losses.registry import LOSSES


def cross_entropy_rows(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> RowLoss:
    """``-Σ_j t_ij log softmax(logits_i)_j`` for each row, and what of it the targets make unavoidable.

    ``label_smoothing`` ε replaces t by (1 - ε) t + ε / B. ``target_entropy`` is the smallest value the loss can take.

    Args:
        logits: ``[rows, candidates]``, scaled.
        targets: ``[rows, candidates]``; each row sums to 1.
        label_smoothing: Fraction of the target spread over all candidates.

    Returns:
        The loss of each row, and the sum of the targets' entropies.
    """
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    smooth = targets * (1 - label_smoothing) + label_smoothing / targets.shape[1]
    return loss, {"target_entropy": -(smooth * smooth.clamp_min(1e-12).log()).sum().detach()}


class CLIPContrastiveLoss(ContrastiveObjective):
    """Cross-entropy of each image over all texts, and of each text over all images, averaged.

        s_ij = sim(x_i, y_j) / τ                   i: image, j: text, τ: temperature
        L    = ½ · mean_i CE(s_i·, i) + ½ · mean_j CE(s_·j, j)

    Besides what every objective returns: ``target_entropy`` (scalar, in nats), the smallest loss the targets allow.
    """

    uses_groups = False

    def row_loss(self, rows: Rows) -> RowLoss:
        """Cross entropy of each row's similarities with its positives.

        Args:
            rows: Similarities of some rows with all candidates, and which of these are positives.

        Returns:
            A loss for each row.
        """
        return cross_entropy_rows(rows.logits, rows.targets(), self.label_smoothing)


class MultiPositiveContrastiveLoss(CLIPContrastiveLoss):
    """The same with every row of equal ``group_ids`` a positive:

        t_ij = [g_i = g_j] / #{k : g_i = g_k}      (symmetric, rows and columns sum to 1)
        L    = ½ · mean_i CE(s_i·, t_i·) + ½ · mean_j CE(s_·j, t_·j)

    Without equal ids it is CLIP's loss exactly. With them, plain CLIP would push equal captions apart.
    """

    uses_groups = True


LOSSES.register("contrastive")(CLIPContrastiveLoss.from_settings)
LOSSES.register("multi_positive")(MultiPositiveContrastiveLoss.from_settings)
