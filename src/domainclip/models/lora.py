"""Low-rank adapters (LoRA) in the towers of a dual encoder, through ``peft``.

A linear layer's weight W stays as it is and a low-rank update beside it is trained: W + (alpha / r) · B A with A of
r × inputs and B of outputs × r, B zero at the start (Hu et al. 2021, "LoRA", §4.1). Gradients and optimizer state
are then needed for A and B alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from domainclip.config.settings import AdapterSettings
from domainclip.errors import CheckpointError, ConfigurationError, MissingExtraError
from domainclip.registry import nearest

if TYPE_CHECKING:
    from domainclip.models.dual_encoder import DualEncoder, Tower

_ADAPTER = "default"
_TOWERS = {"image": "vision_model.", "text": "text_model."}
_PROJECTIONS = ("visual_projection.", "text_projection.", "vision_model.pooler.", "text_model.pooler.")


def require_peft() -> None:
    """Raises ``MissingExtraError`` where ``peft`` is not installed."""
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "lora_r (training with LoRA adapters)")


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def is_projection(encoder: DualEncoder, name: str) -> bool:
    """Whether a parameter or layer maps a tower's output to the shared space: projections, the dense layer of a
    pooler (which comes untrained with many backbones), and SigLIP's text head, its projection by another name."""
    return name.startswith(_PROJECTIONS) or (encoder.is_siglip and name.startswith("text_model.head."))


def _tower_of(name: str) -> Tower | None:
    if name.startswith(("vision_model.", "visual_projection")):
        return "image"
    return "text" if name.startswith(("text_model.", "text_projection")) else None


def adaptable_layers(encoder: DualEncoder) -> list[str]:
    """Names of the layers that an adapter fits: linear ones.

    Not those of ``nn.MultiheadAttention`` (SigLIP's pooling head), which reads their weights without calling them, so
    that an adapter would be passed over. Not convolutions, though ``peft`` has adapters for them: the update of a
    depthwise one cannot be merged, and ``transformers``' MobileNets ask their convolutions for a stride that the
    adapter hides.
    """
    within = [f"{name}." for name, m in encoder.model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return [
        name
        for name, module in encoder.model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(tuple(within)) and _tower_of(name) is not None
    ]


def adapted_layers(encoder: DualEncoder, target_modules: list[str] | None) -> list[str]:
    """Names of the layers that get an adapter.

    Without ``target_modules``: every linear layer of the transformer towers but their projections, which are trained
    whole; attention and MLP alike, since adapters on attention alone learn less (Schulman et al. 2025, "LoRA Without
    Regret"). Names are found in the model, so ViT, CLIP, SigLIP, BERT and ConvNeXt (whose pointwise convolutions are
    linear layers) need no list. A batch-normalised convolutional tower gets none.

    With it: layers of that name, or whose name ends in it (as ``peft`` has it). Locked towers get none.

    Raises ``ConfigurationError`` for an entry that no layer has, and where nothing is left to adapt.
    """
    layers = adaptable_layers(encoder)
    if target_modules is None:
        transformers = {"image"} if encoder.image_tower_kind == "transformer" else set()
        chosen = [
            name
            for name in layers
            if _tower_of(name) in transformers | {"text"} and not is_projection(encoder, f"{name}.")
        ]
    else:
        chosen = []
        for target in target_modules:
            found = [name for name in layers if name == target or name.endswith(f".{target}")]
            if not found:
                endings = sorted({name.rsplit(".", 1)[-1] for name in layers})
                guess = nearest(target, [*endings, *layers])
                hint = f" Did you mean {guess!r}?" if guess else ""
                raise ConfigurationError(
                    f"target_modules: no layer that can be adapted is named {target!r}.{hint} Endings of this model: "
                    f"{', '.join(endings)}"
                )
            chosen += found
    free = [name for name in dict.fromkeys(chosen) if _tower_of(name) not in encoder.locked]
    if not free:
        raise ConfigurationError(
            "lora_r has no layer to adapt: "
            + (
                f"every layer it would adapt is in a locked tower (lock_{', lock_'.join(sorted(encoder.locked))})"
                if chosen
                else "the towers have no linear layer"
            )
            + ". Unlock a transformer tower, name layers in target_modules, or leave lora_r out"
        )
    return free


class LoraAdapters:
    """The adapters of one encoder, from ``attach_lora`` to ``merge`` or ``remove``.

    ``layers``: names of the adapted ones. ``towers``: those whose own weights are frozen meanwhile. ``trainable``:
    which parameters were, before.
    """

    def __init__(
        self, model: nn.Module, tuner: Any, layers: list[str], towers: set[str], trainable: Mapping[str, bool]
    ) -> None:
        self.model = model
        self.layers = layers
        self.towers = frozenset(towers)
        self._tuner = tuner
        self._trainable_before = dict(trainable)
        self._digest: str | None = None

    def describe(self) -> str:
        """One line for the user: where the adapters are, and how much is trained."""
        places = {tower: sum(_tower_of(name) == tower for name in self.layers) for tower in ("image", "text")}
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
        a = layer.lora_A[_ADAPTER].weight.detach().cpu().double()
        b = layer.lora_B[_ADAPTER].weight.detach().cpu().double()
        return (weight.double() + layer.scaling[_ADAPTER] * (b @ a)).to(weight.dtype)

    def merged_state_dict(self) -> dict[str, Tensor]:
        """The model's weights with its adapters merged, under the names it has without them.

        The model itself is not touched: adding and then subtracting an update would not give back the same floats.
        Only adapted matrices are new tensors; the rest is the model's own memory.
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
        """Weights that are not trained, and that a checkpoint can do without."""
        return [name for name, parameter in self._frozen()]

    def _frozen(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad and _tower_of(name) is not None:
                yield name, parameter

    def frozen_digest(self) -> str:
        """SHA-256 of the frozen weights, computed once: adapters mean nothing beside other weights."""
        if self._digest is None:
            digest = hashlib.sha256()
            for name, parameter in self._frozen():
                digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
                digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            self._digest = digest.hexdigest()
        return self._digest


def attach_lora(encoder: DualEncoder, settings: AdapterSettings, seed: int) -> LoraAdapters:
    """Put adapters into ``encoder.model``, and freeze what they stand in for.

    Transformer towers keep their own weights, whether ``target_modules`` names a layer of them or not; a
    convolutional one does where it has adapters, and is otherwise trained whole unless it is locked. Projections and
    the logit scale go on being trained as before. Reproducible in ``seed``; the caller's random state is untouched.

    Raises ``MissingExtraError`` without ``peft``, ``ConfigurationError`` where ``adapted_layers`` does.
    """
    require_peft()
    from peft import LoraConfig, LoraModel

    assert settings.lora_r is not None
    model = encoder.model
    layers = adapted_layers(encoder, settings.target_modules)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    towers = {str(_tower_of(name)) for name in layers} | {"text"}
    if encoder.image_tower_kind == "transformer":
        towers.add("image")
    config = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=layers,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):  # peft draws on the CPU and moves the result to the layer's device
        torch.manual_seed(seed)
        tuner = LoraModel(model, config, _ADAPTER)
    adapters = LoraAdapters(model, tuner, layers, towers, trainable)
    inside = tuple(_TOWERS[tower] for tower in sorted(towers))
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        own = name.replace(".base_layer.", ".")
        adapted = own != name
        replaced = adapted or (own.startswith(inside) and not is_projection(encoder, own))
        parameter.requires_grad_(trainable[own] and not replaced)
    return adapters


def training_state(encoder: DualEncoder) -> dict[str, Any]:
    """What a checkpoint must hold of an encoder: all weights, or with adapters those that are trained, buffers, the
    logit scale, and a digest of the rest."""
    weights = encoder.state_dict()
    if encoder.adapters is None:
        return weights
    frozen = {f"model.{name}" for name in encoder.adapters.frozen_names()}
    trained = {name: value for name, value in weights.items() if name not in frozen}
    return {"trained": trained, "frozen_digest": encoder.adapters.frozen_digest()}


def load_training_state(encoder: DualEncoder, state: dict[str, Any]) -> None:
    """Go on from ``training_state``. Raises ``CheckpointError`` where the frozen weights are other ones."""
    if encoder.adapters is None:
        encoder.load_state_dict(state)
        return
    if state["frozen_digest"] != encoder.adapters.frozen_digest():
        raise CheckpointError(
            f"The checkpoint's adapters were trained beside other weights than {encoder.name or 'this model'} has now. "
            "Resume from the model that the run started from"
        )
    encoder.load_state_dict({**encoder.state_dict(), **state["trained"]})
