"""Position embeddings of an image tower for any grid of patches, always resized from the original ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from domainclip.errors import ModelLoadError
from domainclip.models.source.files import check_weights

ORIGINAL_POSITIONS = "original_positions.safetensors"
"""Beside weights whose position embeddings were resized for another image resolution: the table they were resized
from."""

CACHED_MATRICES = 64
"""Matrices kept per tower. One belongs to a pair of resolutions and holds a few kilobytes, so that every size a
schedule goes through stays at hand."""


@dataclass(frozen=True)
class _Scheme:
    asks: bool  # the tower's forward resizes only when told ``interpolate_pos_encoding=True``
    antialias: bool = False


_SCHEMES = {
    "clip_vision_model": _Scheme(asks=True),
    "siglip_vision_model": _Scheme(asks=True),  # also SigLIP 2 at fixed resolution, which has SigLIP's classes
    "vit": _Scheme(asks=True),
    "deit": _Scheme(asks=True),
    "dinov2": _Scheme(asks=False),
    "dinov2_with_registers": _Scheme(asks=False, antialias=True),
}
"""Image towers whose ``interpolate_pos_encoding`` in ``transformers`` is the resize below, by their config's type."""


def resize_matrix(
    length: int, new_length: int, dtype: torch.dtype = torch.float32, antialias: bool = False
) -> Float[Tensor, "new_length length"]:
    """The bicubic resize of one axis (Keys 1981 with a = -0.75, half-pixel centres) as a matrix, on the CPU.

    It is what ``F.interpolate`` makes of the unit vectors, computed in ``dtype`` as it would compute there.

    Args:
        length: Entries before.
        new_length: Entries afterwards.
        dtype: Float32 or float64.
        antialias: As ``F.interpolate`` has it.

    Returns:
        Each row is what one new entry takes of the old ones.
    """
    # Columns of an image whose width stays: torch 2.13 resizes one of width 1 wrongly when antialiasing.
    units = torch.eye(length, dtype=dtype, device="cpu")[None, None]
    size = (new_length, length)
    return F.interpolate(units, size=size, mode="bicubic", align_corners=False, antialias=antialias)[0, 0]


def _square(value: int | Sequence[int]) -> tuple[int, int]:
    height, width = value if isinstance(value, (list, tuple)) else (value, value)
    return int(height), int(width)


class PositionEmbeddings:
    """The position embeddings of one tower; takes the place of its ``interpolate_pos_encoding``.

    ``transformers`` calls ``F.interpolate`` on each forward. The resize is linear and separable, so here it is a
    product with one small cached matrix for each axis: equal up to rounding, as cheap when the size changes each
    step, deterministic backward (on CUDA that of ``F.interpolate`` is not), and free of kernels that MPS lacks. The
    trained parameter stays the original table. At its own size it is handed out as it is.

    The method is replaced on the instance, since ``transformers`` offers no setting for it. No forward is touched, so
    adapters (peft) and gradient checkpointing wrap the tower as ever. The matrices are no parameters or buffers.
    """

    def __init__(self, module: nn.Module, config: PretrainedConfig, scheme: _Scheme) -> None:
        self.module = module
        self.patch = _square(config.patch_size)
        self.size = _square(config.image_size)
        self.asks = scheme.asks
        self.antialias = scheme.antialias
        self.grid = (self.size[0] // self.patch[0], self.size[1] // self.patch[1])
        self.prefix = self.table().shape[0] - self.grid[0] * self.grid[1]  # class token and the like
        self.restored = False
        """The tower's own idea of its size is that of the file, not of the table."""
        self._matrices: OrderedDict[tuple, Tensor] = OrderedDict()
        module.interpolate_pos_encoding = self._interpolate  # type: ignore[assignment]

    def _owner(self) -> tuple[nn.Module, str]:
        """The module that holds the table, and the parameter's name there."""
        embedding = getattr(self.module, "position_embedding", None)
        if embedding is None:  # ViT, DeiT, DINOv2: a parameter [1, positions, dim]
            return self.module, "position_embeddings"
        return getattr(embedding, "base_layer", embedding), "weight"

    @property
    def parameter(self) -> nn.Parameter:
        """The trained table, at its original size."""
        owner, name = self._owner()
        return getattr(owner, name)

    def table(self) -> Float[Tensor, "positions dim"]:
        """The trained table with what an adapter adds to it.

        Returns:
            At its original size.
        """
        embedding = getattr(self.module, "position_embedding", None)
        if embedding is None:
            return self.module.position_embeddings[0]  # type: ignore[index]
        return embedding(self.module.position_ids)[0]  # looked up, so that an adapter around the table has its say

    def at_grid(self, rows: int, columns: int) -> Float[Tensor, "positions dim"]:
        """Embeddings for ``rows`` × ``columns`` patches behind those of the class token; differentiable with respect
        to the original ones.

        Neither autocast nor a lowered float32 matmul precision (TF32) has a say in it: where the device has float64
        the products are in it, which costs nothing beside a forward.

        Args:
            rows: Patches from top to bottom.
            columns: Patches from left to right.

        Returns:
            Class token and the like first, then patches row by row.
        """
        table = self.table()
        if (rows, columns) == self.grid:
            return table
        prefix, patches = table[: self.prefix], table[self.prefix :]
        autocast = torch.is_autocast_enabled(table.device.type)
        with torch.autocast(table.device.type, enabled=False) if autocast else nullcontext():
            dim = table.shape[1]
            values = patches.to(torch.float64 if table.device.type in {"cpu", "cuda"} else torch.float32)
            if rows != self.grid[0]:
                values = self._matrix(self.grid[0], rows, values, table.dtype) @ values.reshape(self.grid[0], -1)
            values = values.reshape(rows, self.grid[1], dim)
            if columns != self.grid[1]:
                values = self._matrix(self.grid[1], columns, values, table.dtype) @ values
            return torch.cat([prefix, values.reshape(rows * columns, dim).to(table.dtype)])

    def _matrix(self, length: int, new_length: int, like: Tensor, dtype: torch.dtype) -> Tensor:
        """On the device and in the type of ``like``; its weights as ``F.interpolate`` computes them for ``dtype``."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        key = (length, new_length, dtype, like.dtype, like.device, type(like))
        found = self._matrices.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # a later training step may use it
                matrix = resize_matrix(length, new_length, dtype, self.antialias)
                found = self._matrices[key] = matrix.to(like.device, like.dtype)
            if len(self._matrices) > CACHED_MATRICES:
                self._matrices.popitem(last=False)
        self._matrices.move_to_end(key)
        return found

    def _interpolate(self, embeddings: Tensor, height: int, width: int) -> Float[Tensor, "1 positions dim"]:
        """In place of the module's own ``interpolate_pos_encoding``; height and width in pixels."""
        if torch.jit.is_tracing() or torch.compiler.is_exporting():  # the traced graph must take any size
            return type(self.module).interpolate_pos_encoding(self.module, embeddings, height, width)  # type: ignore
        return self.at_grid(height // self.patch[0], width // self.patch[1])[None]

    @contextmanager
    def saved_for(self, resolution: int, config: PretrainedConfig, folder: Path) -> Iterator[None]:
        """Within it the module holds a table resized for ``resolution`` pixels and ``config`` (the tower's) says so, so
        that what is saved needs no interpolation; the original table is written to ``folder``. Afterwards parameter and
        config are the former ones again.

        Nothing of it happens at the original size, nor for a tower that interpolates of its own accord.

        Args:
            resolution: In pixels; what the saved model is for.
            config: The tower's config.
            folder: Where the original table is written.

        Returns:
            A context manager.
        """
        if not self.asks or (resolution, resolution) == self.size:
            yield
            return
        owner, name = self._owner()
        original, size = self.parameter, config.image_size
        folder.mkdir(parents=True, exist_ok=True)
        resolutions = {"image_size": ",".join(map(str, self.size))}
        save_file({"positions": original.detach().cpu().contiguous()}, folder / ORIGINAL_POSITIONS, resolutions)
        with torch.no_grad():
            table = self.at_grid(resolution // self.patch[0], resolution // self.patch[1])
        setattr(owner, name, nn.Parameter(table.view(*original.shape[:-2], *table.shape).clone()))
        config.image_size = resolution
        try:
            yield
        finally:
            setattr(owner, name, original)
            config.image_size = size

    def restore_originals(self, folder: Path, config: PretrainedConfig) -> bool:
        """Take back the table that ``saved_for`` left in the folder this tower was loaded from, so that another
        resolution is resized from it and not from what was resized before; ``config`` (the tower's) then says its size.

        Args:
            folder: That the tower was loaded from.
            config: The tower's config.

        Returns:
            Whether there was one.

        Raises:
            ModelLoadError: It is damaged, or another model's.
        """
        path = folder / ORIGINAL_POSITIONS
        if not path.is_file():
            return False
        table, (height, width) = self._read_originals(path)
        owner, name = self._owner()
        setattr(owner, name, nn.Parameter(table))
        if isinstance(owner, nn.Embedding):
            owner.num_embeddings = len(table)
        if hasattr(self.module, "position_ids"):
            self.module.position_ids = torch.arange(table.shape[-2], device=table.device)[None]
        self.size = (height, width)
        self.grid = (height // self.patch[0], width // self.patch[1])
        config.image_size = height if height == width else [height, width]
        self.restored = True
        return True

    def originals_of(self, folder: Path) -> Tensor | None:
        """The original table that ``saved_for`` left in a folder; None where what was saved is the original.

        Args:
            folder: That a model was saved to.

        Returns:
            In the type of the present one.

        Raises:
            ModelLoadError: It is damaged, or another model's.
        """
        path = folder / ORIGINAL_POSITIONS
        return self._read_originals(path)[0].to(self.parameter.dtype) if path.is_file() else None

    def _read_originals(self, path: Path) -> tuple[Tensor, tuple[int, int]]:
        check_weights(path)
        try:
            with safe_open(path, framework="pt") as content:
                table = content.get_tensor("positions").to(self.parameter)
                height, width = (int(resolution) for resolution in (content.metadata() or {})["image_size"].split(","))
        except (SafetensorError, KeyError, ValueError) as error:
            raise ModelLoadError(f"{path} is no table of position embeddings: {error}. Copy it again") from error
        rows = self.prefix + (height // self.patch[0]) * (width // self.patch[1])
        if table.shape[-2:] != (rows, self.parameter.shape[-1]) or not bool(torch.isfinite(table).all()):
            raise ModelLoadError(
                f"{path} holds a table of {tuple(table.shape)}, where {rows} × {self.parameter.shape[-1]} finite "
                "numbers are needed: it is another model's, or damaged. Copy it again"
            )
        return table, (height, width)


def position_embeddings(vision_model: PreTrainedModel) -> PositionEmbeddings | None:
    """Those of an image tower, made ready for any size; None for a tower without ones that are known here.

    Args:
        vision_model: The image tower.

    Returns:
        They, with the tower's own method replaced.
    """
    config = getattr(vision_model, "config", None)
    scheme = _SCHEMES.get(getattr(config, "model_type", ""))
    if scheme is None:
        return None
    module = next((m for m in vision_model.modules() if hasattr(m, "interpolate_pos_encoding")), None)
    return None if module is None else PositionEmbeddings(module, config, scheme)
