"""Pairs and classes for projections that learn from features: which view, which caption, which rows a step sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from domainclip.data.dataset import CLIPDataset
from domainclip.models.projections import ProjectionInputs
from domainclip.training.probe.features import FeatureReader


@dataclass(frozen=True)
class ClassPrompts:
    """The sentences of each class, as what the text projection reads. ``of``: the number of the class of each
    sentence."""

    labels: list[str]
    inputs: ProjectionInputs
    of: Int[Tensor, " sentences"]

    @classmethod
    def read(
        cls, reader: FeatureReader, prompts: Mapping[str, Sequence[str]], data: CLIPDataset
    ) -> ClassPrompts | None:
        """Read the features of the classes' sentences.

        Args:
            reader: Of the text tower's features.
            prompts: Label to sentences, which have been through the domain's text steps.
            data: The training rows, for the length of texts.

        Returns:
            None for fewer than two classes: there is nothing to tell apart.
        """
        if len(prompts) < 2:
            return None
        sentences = [sentence for texts in prompts.values() for sentence in texts]
        of = [index for index, texts in enumerate(prompts.values()) for _ in texts]
        inputs = reader.texts(reader.encoder.processor.token_ids(sentences, data.text_length))
        return cls(list(prompts), inputs, torch.tensor(of, device=reader.device))

    def weights(self) -> Float[Tensor, "classes dim"]:
        """One unit vector for each class: its sentences' embeddings brought to length 1, averaged, and brought there
        again (Radford et al. 2021, section 3.1.4).

        Returns:
            ``[classes, dim]``, with the projection as it is now.
        """
        unit = F.normalize(self.inputs.embed(), dim=-1)
        sums = unit.new_zeros(len(self.labels), unit.shape[1]).index_add(0, self.of, unit)
        return F.normalize(sums, dim=-1)

    def loss(
        self, images: Float[Tensor, "n dim"], classes: Int[Tensor, " n"], logit_scale: Tensor
    ) -> Float[Tensor, ""]:
        """Cross-entropy of the classification by class prompts.

        Args:
            images: Embeddings ``[n, dim]``, of any length.
            classes: Number of each row's class ``[n]``, −1 for none.
            logit_scale: The logarithm of one over the temperature.

        Returns:
            The mean in nats over the rows that have a class; 0 without any.
        """
        logits = F.normalize(images, dim=-1) @ self.weights().T * logit_scale.exp().reshape(())
        return F.cross_entropy(logits, classes, reduction="sum", ignore_index=-1) / (classes >= 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Draw:
    """One batch: indices into ``images`` and ``texts``, and each pair's group and class (−1: none)."""

    images: Int[Tensor, " n"]
    texts: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]
    classes: Int[Tensor, " n"]


@dataclass(frozen=True)
class PairDraws:
    """Rows as features, from which batches are drawn. A row stands once for each view in ``images``, all clean views
    first; ``choices`` holds the indices into ``texts`` of what each row may show, ``counts[i]`` of them from
    ``starts[i]`` on."""

    images: ProjectionInputs
    texts: ProjectionInputs
    views: int
    groups: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]
    choices: Int[Tensor, " choices"]
    starts: Int[Tensor, " rows"]
    counts: Int[Tensor, " rows"]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls, reader: FeatureReader, data: CLIPDataset, rows: Sequence[int], views: int, classes: ClassPrompts | None
    ) -> PairDraws:
        """Read the features of rows.

        Args:
            reader: Of both towers' features.
            data: The data set.
            rows: Which of its rows.
            views: Augmented views of each image besides the clean one.
            classes: Numbers the rows' labels.

        Returns:
            The rows whose images can be read, in order; the others are in ``skipped`` with the reason.

        Raises:
            ImageError: An image cannot be read, and the data set is ``strict``.
        """
        found = reader.images(data, rows, views)
        device = reader.device
        shown = [data.shown_texts(row) for row in found.rows]
        used = sorted({text for texts in shown for text in texts})
        index_of = {text: number for number, text in enumerate(used)}
        number = {label: index for index, label in enumerate(classes.labels)} if classes is not None else {}
        counts = torch.tensor([len(texts) for texts in shown], dtype=torch.long)
        return cls(
            images=found.inputs,
            texts=reader.texts([data.tokens[text].tolist() for text in used]),
            views=found.views,
            groups=data.group_ids[torch.tensor(found.rows, dtype=torch.long)].to(device),
            classes=torch.tensor([number.get(data.pairs[row].label or "", -1) for row in found.rows], device=device),
            choices=torch.tensor([index_of[text] for texts in shown for text in texts], dtype=torch.long),
            starts=counts.cumsum(0) - counts,
            counts=counts,
            skipped=found.skipped,
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def first_texts(self) -> Int[Tensor, " rows"]:
        """The index into ``texts`` of each row's first caption."""
        return self.choices[self.starts].to(self.groups.device)

    def draw(self, largest: int, balanced: bool, generator: torch.Generator) -> Draw:
        """Draw a batch, each row with one of its views and one of its captions.

        Args:
            largest: Rows to draw; all where they are fewer.
            balanced: Draw rows with replacement so that each class (what has no class counts as one) is as likely as
                any other. Otherwise every row is drawn at most once.
            generator: On the CPU, so that every device sees the same numbers.

        Returns:
            The batch.
        """
        size = min(largest, len(self))
        if balanced:
            classes = self.classes.cpu()
            distinct, kind = classes.unique(return_inverse=True)
            weights = 1.0 / torch.bincount(kind, minlength=len(distinct)).double()[kind]
            rows = torch.multinomial(weights, size, replacement=True, generator=generator)
        else:
            rows = torch.randperm(len(self), generator=generator)[:size]
        view = torch.randint(self.views, (size,), generator=generator)
        counts = self.counts[rows]
        offset = (torch.rand(size, generator=generator, dtype=torch.float64) * counts).long()
        texts = self.choices[self.starts[rows] + offset]
        device = self.groups.device
        on_device = rows.to(device)
        return Draw(
            (view * len(self) + rows).to(device), texts.to(device), self.groups[on_device], self.classes[on_device]
        )
