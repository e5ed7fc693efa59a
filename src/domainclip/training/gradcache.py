"""One contrastive loss over a batch that need not fit through the towers at once.

GradCache (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): embed in
chunks without a graph, take the loss and its gradient with respect to all embeddings, then run each chunk again with
a graph and send its share of that gradient back. Accumulating the loss of small batches instead would be another
objective: each row would see only its chunk's negatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Encode = Callable[..., Tensor]


class ContrastiveStep:
    """Forward and backward of one contrastive batch; gradients are left in the parameters.

    ``encode_image(pixels)`` and ``encode_text(input_ids, attention_mask)`` run under ``autocast()``;
    ``loss(image_embeds, text_embeds, group_ids)`` runs in float32 outside it. ``chunk``: rows that go through a
    tower at once; None or at least the batch means a single pass.

    A replayed chunk sees the random numbers (dropout) of its first pass, so that without dropout the gradient
    equals the full batch's, and with it that of the same chunks run with their graphs kept.
    """

    def __init__(
        self,
        encode_image: Encode,
        encode_text: Encode,
        loss: Callable[..., dict[str, Any]],
        autocast: Callable[[], Any],
        device: torch.device,
        chunk: int | None = None,
        backward_scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        self.encode_image = encode_image
        self.encode_text = encode_text
        self.loss = loss
        self.autocast = autocast
        self.device = device
        self.chunk = chunk
        self.backward_scale = backward_scale

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        size = len(batch["pixels"])
        images = [(batch["pixels"],)]
        texts = [(batch["input_ids"], batch["attention_mask"])]
        if self.chunk is None or self.chunk >= size:
            image_embeds = self._run(self.encode_image, images[0])
            text_embeds = self._run(self.encode_text, texts[0])
            output = self._loss(image_embeds, text_embeds, batch)
            self.backward_scale(output["loss"]).backward()
            return _told(output, image_embeds)
        images = list(zip(batch["pixels"].split(self.chunk), strict=True))
        texts = list(zip(batch["input_ids"].split(self.chunk), batch["attention_mask"].split(self.chunk), strict=True))
        work = [(self.encode_image, inputs) for inputs in images] + [(self.encode_text, inputs) for inputs in texts]
        states, parts = [], []
        for encode, inputs in work:
            states.append(self._random_state())
            with torch.no_grad():
                parts.append(self._run(encode, inputs))
        after = self._random_state()
        leaves = [part.detach().requires_grad_() for part in parts]
        image_embeds, text_embeds = torch.cat(leaves[: len(images)]), torch.cat(leaves[len(images) :])
        output = self._loss(image_embeds, text_embeds, batch)
        self.backward_scale(output["loss"]).backward()
        for (encode, inputs), state, leaf in zip(work, states, leaves, strict=True):
            self._set_random_state(state)
            embeds = self._run(encode, inputs)
            if embeds.requires_grad:  # a locked tower has nothing to learn
                embeds.backward(leaf.grad)
        self._set_random_state(after)
        return _told(output, image_embeds)

    def _run(self, encode: Encode, inputs: tuple[Tensor, ...]) -> Tensor:
        with self.autocast():
            embeds = encode(*inputs)
        return embeds if embeds.dtype == torch.float64 else embeds.float()

    def _loss(self, image_embeds: Tensor, text_embeds: Tensor, batch: dict[str, Any]) -> dict[str, Any]:
        return self.loss(image_embeds, text_embeds[batch["caption_index"]], batch["group_ids"])

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


def _told(output: dict[str, Any], image_embeds: Tensor) -> dict[str, Any]:
    """What the objective said, without graph, and without the B × B matrices, which nobody reads after the step."""
    kept = {name: value for name, value in output.items() if name not in ("logits_per_image", "logits_per_text")}
    return {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in kept.items()
    } | {"image_embeds": image_embeds.detach()}  # fmt: skip
