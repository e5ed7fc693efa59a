"""Low-rank adapters (LoRA) that are in a model: what they have learned, merged into its weights or taken out.

A linear layer's weight W stays as it is and a low-rank update beside it is trained: W + (alpha / r) · B A with A of
r × inputs and B of outputs × r, B zero at the start (Hu et al. 2021, "LoRA", §4.1). Gradients and optimizer state
are then needed for A and B alone. ``lora.attach_lora`` puts them in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from domainclip.models.towers import TowerName, tower_of

if TYPE_CHECKING:
    from peft import LoraModel

ADAPTER = "default"
"""What ``peft`` calls the one adapter of a layer."""


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter.

    Args:
        name: Of the parameter or module, as in the ``transformers`` model.

    Returns:
        Whether it is one.
    """
    return ".lora_A." in name or ".lora_B." in name


class LoraAdapters:
    """The adapters of one model, made by ``lora.attach_lora`` and gone after ``merge`` or ``remove``.

    Args:
        model: The ``transformers`` model that they are in.
        tuner: The ``peft`` model around it, which can take them out again.
        layers: Names of the layers that have one.
        towers: Those whose own weights are frozen meanwhile.
        trainable: Which of the model's parameters were trained before, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        tuner: LoraModel,
        layers: list[str],
        towers: Collection[TowerName],
        trainable: Mapping[str, bool],
    ) -> None:
        self.model = model
        self.layers = layers
        self.towers = frozenset(towers)
        self._tuner = tuner
        self._trainable_before = dict(trainable)
        self._digest: str | None = None

    def describe(self) -> str:
        """One line for the user: where the adapters are, and how much is trained.

        Returns:
            The towers that have adapters, and how many weights are trained of how many.
        """
        places = {tower: sum(tower_of(name) == tower for name in self.layers) for tower in ("image", "text")}
        where = " and ".join(f"{count} layers of the {tower} tower" for tower, count in places.items() if count)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        total = sum(p.numel() for n, p in self.model.named_parameters() if not is_adapter(n))
        whole = "" if "image" in self.towers else "; the convolutional image tower gets none"
        return f"LoRA: adapters on {where}{whole}; {trained:,} weights are trained, the model has {total:,}"

    def _updated(self, name: str) -> Tensor:
        """W + (alpha / r) · B A of one layer, on the CPU.

        In float64: devices and ``torch.set_float32_matmul_precision`` may round products of float32 matrices more
        than the 1e-6 that a merged model may differ by.
        """
        layer: Any = self.model.get_submodule(name)
        weight = layer.base_layer.weight.detach().cpu()
        a = layer.lora_A[ADAPTER].weight.detach().cpu().double()
        b = layer.lora_B[ADAPTER].weight.detach().cpu().double()
        return (weight.double() + layer.scaling[ADAPTER] * (b @ a)).to(weight.dtype)

    def merged_state_dict(self) -> dict[str, Tensor]:
        """The model's weights with its adapters merged, under the names it has without them.

        The model itself is not touched: adding and then subtracting an update would not give back the same floats.
        Only adapted matrices are new tensors; the rest is the model's own memory.

        Returns:
            Tensors by name, of the weights' own types.
        """
        state = {}
        for name, value in self.model.state_dict().items():
            if not is_adapter(name):
                state[name.replace(".base_layer.", ".")] = value
        for name in self.layers:
            state[f"{name}.weight"] = self._updated(name)
        return state

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights, one layer at a time, and take the adapters out."""
        for name in self.layers:
            layer: Any = self.model.get_submodule(name)
            layer.base_layer.weight.copy_(self._updated(name))
        self.remove()

    def remove(self) -> None:
        """Take the adapters out: the model is what it was, its projections and logit scale as trained."""
        self._tuner.unload()
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable_before[name])

    def frozen_names(self) -> list[str]:
        """Weights that are not trained, and that a checkpoint can do without.

        Returns:
            Their names in the model.
        """
        return [name for name, parameter in self._frozen()]

    def _frozen(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad and tower_of(name) != "scale":
                yield name, parameter

    def frozen_digest(self) -> str:
        """SHA-256 of the frozen weights, computed once: adapters mean nothing beside other weights.

        Returns:
            Hexadecimal digits.
        """
        if self._digest is None:
            digest = hashlib.sha256()
            for name, parameter in self._frozen():
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
                digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()
        return self._digest
