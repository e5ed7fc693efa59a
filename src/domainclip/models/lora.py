"""Which layers of a dual encoder get low-rank adapters (LoRA), and putting them in, through ``peft``."""

from __future__ import annotations

import importlib.util

import torch
from torch import nn

from domainclip.config.settings import AdapterSettings
from domainclip.errors import ConfigurationError, MissingExtraError
from domainclip.models.adapters import ADAPTER, LoraAdapters, is_adapter
from domainclip.models.dual_encoder import DualEncoder
from domainclip.models.towers import PREFIXES, TowerName, is_projection, tower_of
from domainclip.registry import nearest


def require_peft() -> None:
    """Check that LoRA can be had.

    Raises:
        MissingExtraError: Where ``peft`` is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError("peft", "lora", "lora_r (training with LoRA adapters)")


def adaptable_layers(encoder: DualEncoder) -> list[str]:
    """Names of the layers that an adapter fits: linear ones.

    Not those of ``nn.MultiheadAttention`` (SigLIP's pooling head), which reads their weights without calling them, so
    that an adapter would be passed over. Not convolutions, though ``peft`` has adapters for them: the update of a
    depthwise one cannot be merged, and ``transformers``' MobileNets ask their convolutions for a stride that the
    adapter hides.

    Args:
        encoder: The dual encoder.

    Returns:
        In the model's order.
    """
    within = [f"{name}." for name, m in encoder.model.named_modules() if isinstance(m, nn.MultiheadAttention)]
    return [
        name
        for name, module in encoder.model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(tuple(within)) and tower_of(name) != "scale"
    ]


def adapted_layers(encoder: DualEncoder, target_modules: list[str] | None) -> list[str]:
    """Names of the layers that get an adapter.

    Without ``target_modules``: every linear layer of the transformer towers but their projections, which are trained
    whole; attention and MLP alike, since adapters on attention alone learn less (Schulman et al. 2025, "LoRA Without
    Regret"). Names are found in the model, so ViT, CLIP, SigLIP, BERT and ConvNeXt (whose pointwise convolutions are
    linear layers) need no list. A batch-normalised convolutional tower gets none.

    With it: layers of that name, or whose name ends in it (as ``peft`` has it). Locked towers get none.

    Args:
        encoder: The dual encoder.
        target_modules: The user's; None: chosen here.

    Returns:
        In the model's order, or that of ``target_modules``.

    Raises:
        ConfigurationError: For an entry that no layer has, and where nothing is left to adapt.
    """
    layers = adaptable_layers(encoder)
    if target_modules is None:
        adapted = {"image", "text"} if encoder.image_tower_kind == "transformer" else {"text"}
        chosen = [
            name for name in layers if tower_of(name) in adapted and not is_projection(f"{name}.", encoder.is_siglip)
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
    free = [name for name in dict.fromkeys(chosen) if tower_of(name) not in encoder.locked]
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


def attach_lora(encoder: DualEncoder, settings: AdapterSettings, seed: int) -> LoraAdapters:
    """Train adapters instead of the towers' weights from here on: put them in, and freeze what they stand in for.

    Transformer towers keep their own weights, whether ``target_modules`` names a layer of them or not; a
    convolutional one does where it has adapters, and is otherwise trained whole unless it is locked. Projections and
    the logit scale go on being trained as before.

    Args:
        encoder: Gets the adapters, as its ``adapters`` too. Towers that are to be locked are locked already.
        settings: ``lora_r`` is set; the other ``lora_*`` keys and ``target_modules`` are read.
        seed: Of the adapters' first weights. The caller's random state is untouched.

    Returns:
        The encoder's ``adapters``.

    Raises:
        MissingExtraError: Where ``peft`` is not installed.
        ConfigurationError: As ``adapted_layers``.
    """
    require_peft()
    from peft import LoraConfig, LoraModel

    assert settings.lora_r is not None
    model = encoder.model
    layers = adapted_layers(encoder, settings.target_modules)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    towers: set[TowerName] = {"text"}
    if encoder.image_tower_kind == "transformer" or any(tower_of(name) == "image" for name in layers):
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
        tuner = LoraModel(model, config, ADAPTER)
    adapters = LoraAdapters(model, tuner, layers, towers, trainable)
    inside = tuple(PREFIXES[tower] for tower in towers)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        own = name.replace(".base_layer.", ".")
        adapted = own != name
        replaced = adapted or (own.startswith(inside) and not is_projection(own, encoder.is_siglip))
        parameter.requires_grad_(trainable[own] and not replaced)
    encoder.adapters = adapters
    encoder.train(encoder.training)
    return adapters
