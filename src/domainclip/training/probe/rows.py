"""The rows that projections learn from, as features: their captions, classes and folds, and the batches of a fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from domainclip.data.captions.statements import positive_groups
from domainclip.data.dataset import CLIPDataset
from domainclip.data.group_split import find_units
from domainclip.models.projections import ProjectionInputs, join_inputs
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

    def logits(self, images: Float[Tensor, "n dim"], logit_scale: Tensor) -> Float[Tensor, "n classes"]:
        """The classification by class prompts.

        Args:
            images: Embeddings ``[n, dim]``, of any length.
            logit_scale: The logarithm of one over the temperature.

        Returns:
            Cosines over the temperature.
        """
        return F.normalize(images, dim=-1) @ self.weights().T * logit_scale.exp().reshape(())

    def loss(
        self,
        images: Float[Tensor, "n dim"],
        classes: Int[Tensor, " n"],
        logit_scale: Tensor,
        class_weights: Float[Tensor, " classes"] | None = None,
    ) -> Float[Tensor, ""]:
        """Cross-entropy of that classification.

        Args:
            images: Embeddings ``[n, dim]``, of any length.
            classes: Number of each row's class ``[n]``, −1 for none.
            logit_scale: The logarithm of one over the temperature.
            class_weights: What a row of each class counts; one, if left out.

        Returns:
            The mean in nats over the rows that have a class; 0 without any.
        """
        logits = self.logits(images, logit_scale)
        total = F.cross_entropy(logits, classes, class_weights, reduction="sum", ignore_index=-1)
        return total / (classes >= 0).sum().clamp(min=1)


@dataclass(frozen=True)
class Draw:
    """One batch: indices into ``images`` and ``texts``, and each pair's group and class (−1: none)."""

    images: Int[Tensor, " n"]
    texts: Int[Tensor, " n"]
    groups: Int[Tensor, " n"]
    classes: Int[Tensor, " n"]


@dataclass(frozen=True)
class ProbeRows:
    """Rows as features. ``choices`` holds the indices into ``texts`` of what each row may show, ``counts[i]`` of them
    from ``starts[i]`` on. Rows of one unit (group, image) have equal ``units``; ``validation`` says which rows are none
    of the training's."""

    images: ProjectionInputs
    texts: ProjectionInputs
    groups: Int[Tensor, " rows"]
    classes: Int[Tensor, " rows"]
    choices: Int[Tensor, " choices"]
    starts: Int[Tensor, " rows"]
    counts: Int[Tensor, " rows"]
    units: Int[Tensor, " rows"]
    validation: Bool[Tensor, " rows"]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(
        cls,
        reader: FeatureReader,
        training: tuple[CLIPDataset, Sequence[int]],
        validation: tuple[CLIPDataset, Sequence[int]] | None,
        classes: ClassPrompts | None,
    ) -> ProbeRows:
        """Read the features of rows.

        Args:
            reader: Of both towers' features.
            training: The training data set, and which of its rows.
            validation: The same of validation.
            classes: Numbers the rows' labels.

        Returns:
            The rows whose images can be read, in order; the others are in ``skipped`` with the reason.

        Raises:
            ImageError: An image cannot be read, and the data set is ``strict``.
        """
        device = reader.device
        tokens: dict[str, Tensor] = {}
        skipped: dict[str, str] = {}
        pairs, shown, images, held_out = [], [], [], []
        for data, rows in (training, *([validation] if validation is not None else ())):
            found = reader.images(data, rows)
            skipped |= found.skipped
            if not found.rows:
                continue
            images.append(found.inputs)
            for row in found.rows:
                pairs.append(data.pairs[row])
                shown.append([data.texts[text] for text in data.shown_texts(row)])
                tokens |= {data.texts[text]: data.tokens[text] for text in data.shown_texts(row)}
                held_out.append(data is not training[0])
        used = sorted(tokens)
        index_of = {text: number for number, text in enumerate(used)}
        number = {label: index for index, label in enumerate(classes.labels)} if classes is not None else {}
        counts = torch.tensor([len(texts) for texts in shown], dtype=torch.long)
        units = torch.empty(len(pairs), dtype=torch.long)
        for index, unit in enumerate(find_units(pairs)):
            units[unit.rows] = index
        groups = positive_groups([pair.label for pair in pairs], shown, training[0].config.positives)
        return cls(
            images=join_inputs(images) if images else reader.nothing("image"),
            texts=reader.texts([tokens[text].tolist() for text in used]),
            groups=torch.tensor(groups, dtype=torch.long, device=device),
            classes=torch.tensor([number.get(pair.label or "", -1) for pair in pairs], device=device),
            choices=torch.tensor([index_of[text] for texts in shown for text in texts], dtype=torch.long),
            starts=counts.cumsum(0) - counts,
            counts=counts,
            units=units,
            validation=torch.tensor(held_out, dtype=torch.bool),
            skipped=skipped,
        )

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def labelled(self) -> bool:
        """Whether any row has one of the classes."""
        return bool((self.classes >= 0).any())

    @property
    def first_texts(self) -> Int[Tensor, " rows"]:
        """The index into ``texts`` of each row's first caption."""
        return self.choices[self.starts].to(self.groups.device)

    def batches(self, rows: Int[Tensor, " some"], size: int, steps: int, generator: torch.Generator) -> Iterator[Draw]:
        """Batches of shuffled passes, each row with one of its captions. Rows that fill no last batch wait for the next
        pass.

        Args:
            rows: Which rows, on the CPU.
            size: Rows of a batch; all where they are fewer.
            steps: How many batches.
            generator: On the CPU, so that every device sees the same numbers.

        Yields:
            The batches.
        """
        size, device = min(size, len(rows)), self.groups.device
        order = rows[:0]
        for _ in range(steps):
            if len(order) < size:
                order = rows[torch.randperm(len(rows), generator=generator)]
            some, order = order[:size], order[size:]
            offset = (torch.rand(size, generator=generator, dtype=torch.float64) * self.counts[some]).long()
            texts = self.choices[self.starts[some] + offset]
            here = some.to(device)
            yield Draw(here, texts.to(device), self.groups[here], self.classes[here])

    def folds(self, wanted: int, seed: int) -> list[tuple[Tensor, Tensor]]:
        """Divide the rows for cross-validation: no unit is on both sides, and classes are as even as that allows.

        Args:
            wanted: How many folds.
            seed: Of the shuffling.

        Returns:
            Rows to fit to and rows held out, for each fold; none where the rows are of one unit.
        """
        units = self.units.numpy()
        count = min(wanted, len(np.unique(units)))
        if count < 2:
            return []
        labels = self.classes.cpu().numpy()
        if np.unique(labels, return_counts=True)[1].max() < count:
            labels = np.zeros_like(labels)  # of classes of a row or two each, none can be in every fold
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class")
            divided = list(StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(labels, labels, units))
        return [(torch.from_numpy(fitted), torch.from_numpy(held)) for fitted, held in divided]
