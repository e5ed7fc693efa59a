"""Equal candidates get equal scores.

A matrix product does not promise that: BLAS adds up the last columns of a matrix in another order than the first,
so two equal rows can score a last bit apart, and which of them is ranked first depends on where they stand and on
how many queries are compared at once. Domain data repeats captions all the time. So equal rows are scored once, and
the score is handed to each of them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def distinct_rows(
    embeds: Float[Tensor, "n dim"],
) -> tuple[Float[Tensor, "distinct dim"], Int[Tensor, " n"] | None]:
    """The distinct rows and, for each row, which of them it is; all rows and None where there are no equal ones.

    Args:
        embeds: Rows, some of which may be equal.

    Returns:
        The rows and each one's place, or None.
    """
    # On the CPU: not every device sorts rows.
    rows, places = torch.unique(embeds.detach().cpu(), dim=0, return_inverse=True)
    if len(rows) == len(embeds):
        return embeds, None
    return rows.to(embeds.device), places.to(embeds.device)


def spread(scores: Float[Tensor, "queries distinct"], places: Int[Tensor, " n"] | None) -> Float[Tensor, "queries n"]:
    """Scores of the distinct candidates, back to all of them.

    Args:
        scores: Of distinct candidates.
        places: Which of them each candidate is.

    Returns:
        Scores of all.
    """
    return scores if places is None else scores[:, places]
