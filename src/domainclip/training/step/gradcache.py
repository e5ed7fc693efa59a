"""One contrastive loss over a batch that need not fit through the towers at once.

GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): embed in
micro-batches without a graph, take the loss and its gradient with respect to all embeddings, then run each micro-batch
again with a graph and send its fraction of that gradient back. Accumulating the loss of small batches instead would be
another objective: each row would see only its micro-batch's negatives.

Running every micro-batch twice costs one more forward pass of three units of work (1.33 times the whole batch's time).
Where there is memory for it, some micro-batches keep the graph of their first pass and need no second one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from domainclip.data.batches import Batch
from domainclip.training.distributed import ProcessGroup
from domainclip.training.regularization.regularizers import FeatureDistillation
from domainclip.training.step.class_term import ClassificationTerm
from domainclip.training.step.times import StepTimes

Encode = Callable[..., Tensor]


@dataclass
class _Pass:
    """One micro-batch's way through one tower."""

    tower: str
    encode: Encode
    inputs: tuple[Tensor, ...]
    rows: slice
    """Where its embeddings stand among the tower's."""
    random: tuple[Tensor, Tensor | None]
    """The generators' states before it."""
    graph: Tensor | None = None
    """Its embeddings with the graph of the first pass, where that is kept."""


class ContrastiveStep:
    """Forward and backward of one contrastive batch; gradients are left in the parameters.

    A replayed micro-batch sees the random numbers (dropout) of its first pass, so that without dropout the gradient
    equals the full batch's, and with it that of the same micro-batches run with their graphs kept.

    Args:
        encode_image: Takes pixels; runs under ``autocast()``.
        encode_text: Takes input ids and attention mask; runs under ``autocast()``.
        loss: Takes image embeddings, text embeddings and group ids, in float32 outside autocast. With several processes
            it must draw no random numbers, since every process computes it.
        autocast: Makes the context of the towers.
        device: Where everything is.
        micro_batch: Rows that go through a tower at once; None or at least the batch means a single pass.
        backward_scale: Of a ``GradScaler``.
        kept_micro_batches: How many tower passes keep their graph instead of being replayed, images' first; at most
            that many graphs, and never less than one, are alive at a time.
        learning: The towers that are trained. Naming those alone spares the others their replay, and tells an objective
            that asks for gradients (GradNorm) the same as a single pass does.
        processes: The batch is this process' part of a larger one, and the loss is over all of it. Afterwards every
            process holds the gradient that one process would have, and ``image_embeds`` are everyone's.
        parameters: With ``processes`` all that learn, without gradients from before.
        distillation: A further term, of the same embeddings; ``loss`` in what comes back is the objective's alone.
        classification: The same, of ``batch["classes"]``.
        times: Is told how long the loss takes, forward.
    """

    def __init__(
        self,
        encode_image: Encode,
        encode_text: Encode,
        loss: Callable[..., dict[str, Any]],
        autocast: Callable[[], AbstractContextManager[object]],
        device: torch.device,
        micro_batch: int | None = None,
        backward_scale: Callable[[Tensor], Tensor] = lambda loss: loss,
        kept_micro_batches: int = 0,
        learning: Collection[str] = ("image", "text"),
        processes: ProcessGroup | None = None,
        parameters: Iterable[nn.Parameter] = (),
        distillation: FeatureDistillation | None = None,
        classification: ClassificationTerm | None = None,
        times: StepTimes | None = None,
    ) -> None:
        self.encode_image = encode_image
        self.encode_text = encode_text
        self.loss = loss
        self.autocast = autocast
        self.device = device
        self.micro_batch = micro_batch
        self.backward_scale = backward_scale
        self.kept_micro_batches = kept_micro_batches
        self.learning = frozenset(learning)
        self.processes = processes
        self.parameters = list(parameters)
        self.distillation, self.classification = distillation, classification
        self.times = times or StepTimes(device.type == "cpu")
        self.enlarged = 1
        """So many times ``micro_batch`` rows go through at once: for steps with images smaller than it was chosen
        for."""

    def micro_batch_of(self, size: int) -> int:
        """Rows that go through a tower at once.

        Args:
            size: Rows of the batch.

        Returns:
            In [1, size].
        """
        return size if self.micro_batch is None else min(self.micro_batch * self.enlarged, size)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Make the gradient of a batch.

        Args:
            batch: ``pixels`` uint8 ``[rows, 3, edge, edge]`` (None, where none of this part's images could be read),
                ``input_ids`` and ``attention_mask`` ``[texts, length]``, ``caption_index`` and ``group_ids``
                ``[rows]``.

        Returns:
            What the objective and the further terms have come to, without graph, and ``image_embeds`` ``[rows, dim]``.
        """
        size = len(batch["pixels"]) if batch["pixels"] is not None else 0
        micro_batch = self.micro_batch_of(size)
        start = self.distillation.initial_embeddings(batch, micro_batch) if self.distillation is not None else []
        if micro_batch == size and self.processes is None:
            image_embeds = self._run(self.encode_image, (batch["pixels"],))
            text_embeds = self._run(self.encode_text, (batch["input_ids"], batch["attention_mask"]))
            with self.times.of("loss"):
                output, image_embeds, total = self._loss(image_embeds, text_embeds, batch, start)
            self.backward_scale(total).backward()
            return _logged_metrics(output, image_embeds)
        work: list[_Pass] = []
        if size:
            work += self._passes("image", self.encode_image, micro_batch, batch["pixels"])
            work += self._passes("text", self.encode_text, micro_batch, batch["input_ids"], batch["attention_mask"])
        counts = {"image": size, "text": len(batch["input_ids"])}
        # All embeddings of a tower as the loss sees them: cut off from it, collecting their gradient.
        leaves: dict[str, Tensor] = {}
        left = self.kept_micro_batches if micro_batch < size else len(work)  # what goes through whole is not run twice
        embeds: Tensor | None = None
        for part in work:
            for kept, state in zip(part.random, self._random_state(), strict=True):
                if kept is not None and state is not None:
                    kept.copy_(state)
            with torch.set_grad_enabled(left > 0 and part.tower in self.learning):
                embeds = self._run(part.encode, part.inputs)
            if embeds.requires_grad:  # not so for a locked tower: it has no graph to keep
                part.graph, left = embeds, left - 1
            if part.tower not in leaves:
                leaves[part.tower] = embeds.new_empty((counts[part.tower], *embeds.shape[1:]))
            leaves[part.tower][part.rows] = embeds.detach()
        after = self._random_state()
        for tower, leaf in leaves.items():
            leaf.requires_grad_(tower in self.learning)
        with self.times.of("loss"):
            output, image_embeds, total = self._loss(leaves.get("image"), leaves.get("text"), batch, start)
        self.backward_scale(total).backward()
        metrics = _logged_metrics(output, image_embeds)
        whole = self._whole_gradients(metrics)
        del output, total, start, embeds  # the matrices and the last graph need not wait for the replays
        for part in sorted(work, key=lambda part: part.graph is None):  # kept graphs go before others are made
            gradient = leaves[part.tower].grad
            if gradient is None:
                continue
            graph, part.graph = part.graph, None
            if graph is None:
                self._set_random_state(part.random)
            embeds = self._run(part.encode, part.inputs) if graph is None else graph
            if embeds.requires_grad:  # a locked tower has nothing to learn
                embeds.backward(gradient[part.rows])
        self._set_random_state(after)
        self._add_up(whole)
        return metrics

    def _passes(self, tower: str, encode: Encode, micro_batch: int, *inputs: Tensor) -> list[_Pass]:
        parts = zip(*(whole.split(micro_batch) for whole in inputs), strict=True)
        # Room for every random state beforehand, and for the embeddings in one piece: a small tensor that is made
        # between two passes and outlives them keeps the space around it from being used again. In glibc's heap the
        # first pass of each micro-batch took new memory.
        return [
            _Pass(tower, encode, part, slice(index * micro_batch, (index + 1) * micro_batch), self._random_state())
            for index, part in enumerate(parts)
        ]

    def _run(self, encode: Encode, inputs: tuple[Tensor, ...]) -> Tensor:
        with self.autocast():
            embeds = encode(*inputs)
        return embeds if embeds.dtype == torch.float64 else embeds.float()

    def _loss(
        self, image_embeds: Tensor | None, text_embeds: Tensor | None, batch: Batch, start: list[Tensor | None]
    ) -> tuple[dict[str, Any], Tensor, Tensor]:
        """What the objective says, all the images it was said of, and what to go backward from. ``start``: the
        initial model's embeddings of this process' rows, where they are to be kept."""
        groups = batch["group_ids"]
        classes = batch["classes"] if self.classification is not None else groups
        if text_embeds is not None:
            text_embeds = text_embeds[batch["caption_index"]]
        kept = dict(zip(("image", "text"), start, strict=False))
        if self.processes is not None:
            image_embeds, text_embeds, groups, classes = self.processes.gather_rows(
                image_embeds, text_embeds, groups, classes
            )
            towers = [tower for tower in kept if self.distillation and tower in self.distillation.learning]
            kept = dict(zip(towers, self.processes.gather_rows(*(kept[tower] for tower in towers)), strict=True))
        assert image_embeds is not None
        output = self.loss(image_embeds, text_embeds, groups)
        total = output["loss"]
        if self.classification is not None:
            # The sentences go through the text tower here, in every process: their gradient is whole, not a fraction.
            term = self.classification(image_embeds, classes)
            total, output = total + term, {**output, "classification": term}
        if self.distillation is not None:
            penalty = self.distillation.penalty((image_embeds, kept.get("image")), (text_embeds, kept.get("text")))
            total, output = total + penalty, {**output, "distillation": penalty}
        return output, image_embeds, total

    def _whole_gradients(self, metrics: dict[str, Any]) -> list[tuple[nn.Parameter, Tensor]]:
        """Take away what the loss itself has left in the parameters it reads: each process has all of that already,
        whereas what comes through the towers is a part."""
        if self.processes is None:
            return []
        whole = [(p, p.grad) for p in self.parameters if p.grad is not None]
        for parameter, _ in whole:
            parameter.grad = None
        # The same up to rounding; now to the last bit, so that weights never drift apart.
        self.processes.broadcast_tensors([metrics["loss"], *(gradient for _, gradient in whole)])
        return whole

    def _add_up(self, whole: list[tuple[nn.Parameter, Tensor]]) -> None:
        if self.processes is None:
            return
        self.processes.sum_gradients(self.parameters)
        for parameter, gradient in whole:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _random_state(self) -> tuple[Tensor, Tensor | None]:
        if self.device.type == "cuda":
            return torch.get_rng_state(), torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            return torch.get_rng_state(), torch.mps.get_rng_state()
        return torch.get_rng_state(), None

    def _set_random_state(self, state: tuple[Tensor, Tensor | None]) -> None:
        torch.set_rng_state(state[0])
        if state[1] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state[1], self.device)
        elif state[1] is not None:
            torch.mps.set_rng_state(state[1])


def _logged_metrics(output: dict[str, Any], image_embeds: Tensor) -> dict[str, Any]:
    """What the objective said, without graph, and without the B × B matrices, which nobody reads after the step."""
    kept = {name: value for name, value in output.items() if name not in ("logits_per_image", "logits_per_text")}
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in kept.items()} | {
        "image_embeds": image_embeds.detach()
    }
