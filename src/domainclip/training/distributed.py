"""Several processes that train one contrastive batch together, each with the rows it has read.

Averaging the gradients of a loss per process, as data-parallel training does, is another objective: a row would see
the negatives of its own process only. Here the embeddings travel (as in OpenCLIP's ``gather_with_grad``), each process
takes the whole loss over all pairs, keeps the gradient of its own rows, and sends that back through its towers. What
the towers' parameters then hold are summands of the whole batch's gradient, and so they are added up, not averaged.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor, nn

from domainclip.errors import CLIPFinetuningError, ConfigurationError, DeviceError

T = TypeVar("T")

TIMEOUT = timedelta(hours=2)
"""How long a process waits for another one. A process that dies is noticed at once (its connections close); this bounds
the rest, and must be longer than any evaluation or writing that the others wait for."""
_BUCKET_BYTES = 32 * 2**20
"""Gradients are sent in pieces of about this size: one message for each parameter would be slow, one for all large."""


class ProcessGroup:
    """This process among its equals. Use it as a context manager, or ``close()`` it.

    Tensors travel by NCCL on CUDA, everything else by gloo, so that counts and decisions wait for no device. All
    methods but ``close`` and ``shard`` are collective: every process must call the same ones in the same order.

    Args:
        rank: Number of this process, from 0.
        world_size: How many there are.
        device: Where tensors are that travel.
        owned: Whether this object has joined the group, and leaves it when closed.

    Raises:
        CLIPFinetuningError: In any collective method, when another process is gone or does not answer within the
            group's timeout.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device, *, owned: bool = True) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._owned = owned

    @classmethod
    def from_environment(cls, device: torch.device, timeout: timedelta = TIMEOUT) -> ProcessGroup | None:
        """Join the group that ``torchrun`` has described.

        Args:
            device: Of this process.
            timeout: How long a process waits for another one.

        Returns:
            The group; None where there is one process only.

        Raises:
            ConfigurationError: The description is incomplete.
            DeviceError: Several processes cannot share out the device.
            CLIPFinetuningError: The others do not come.
        """
        world = world_size()
        if world == 1:
            return None
        if device.type not in {"cpu", "cuda"}:
            raise DeviceError(
                f"{world} processes cannot share the device {device}: start one process, or set device=cpu"
            )
        if device.index is not None:
            raise DeviceError(
                f"device={device} would put all {world} processes on one GPU: set device=cuda, each takes its own"
            )
        claim_local_gpu(device)
        if dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), device, owned=False)
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
        if missing:
            raise ConfigurationError(
                f"WORLD_SIZE={world} asks for several processes, but {', '.join(missing)} is not set: start with "
                f"torchrun --nproc-per-node {world} -m domainclip …, or unset WORLD_SIZE"
            )
        with _in_touch("The processes did not find each other"):
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        return cls(dist.get_rank(), dist.get_world_size(), device)

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group, which this one has joined; the others' next collective call then fails."""
        if self._owned and dist.is_initialized():
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that validates, writes and prints."""
        return self.rank == 0

    def shard(self, size: int) -> slice:
        """This process' rows of a batch: contiguous, as even as can be, in the order of the ranks.

        Args:
            size: Rows of the batch.

        Returns:
            Their indices in it.
        """
        return shard_of(size, self.rank, self.world_size)

    # --- a batch ---

    def gather_rows(self, *parts: Shaped[Tensor, "rows ..."] | None) -> list[Shaped[Tensor, "everyones_rows ..."]]:
        """Each tensor's rows of all processes, in the order of the ranks.

        The numbers of rows may differ between processes. The gradient of what comes out goes to this process' own rows
        as it is: the others take the same loss, and theirs themselves.

        Args:
            parts: Tensors ``[rows, ...]``, each None in a process without rows.

        Returns:
            A tensor ``[everyone's rows, ...]`` for each.

        Raises:
            CLIPFinetuningError: The processes hold rows of different kinds, or none holds any.
        """
        described = self.gather_objects(
            [
                None if part is None else (len(part), tuple(part.shape[1:]), part.dtype, part.requires_grad)
                for part in parts
            ]
        )
        gathered = []
        for part, rows in zip(parts, zip(*described, strict=True), strict=True):
            kinds = {row[1:] for row in rows if row is not None}
            if len(kinds) != 1:
                problem = f"rows of different kinds: {sorted(kinds, key=str)}" if kinds else "no row of this batch"
                raise CLIPFinetuningError(f"The {self.world_size} processes hold {problem}")
            shape, dtype, needs_grad = kinds.pop()
            if part is None:
                part = torch.empty((0, *shape), dtype=dtype, device=self.device, requires_grad=needs_grad)
            counts = [0 if row is None else row[0] for row in rows]
            gathered.append(_GatherRows.apply(part, counts, self.rank))
        return gathered

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the processes. One that no process has stays None.

        Args:
            parameters: In the same order everywhere.
        """
        parameters = list(parameters)
        present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8)
        with _in_touch():
            dist.all_reduce(present, dist.ReduceOp.MAX)
        gradients = []
        for parameter, there in zip(parameters, present.tolist(), strict=True):
            if there:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            with _in_touch():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    @torch.no_grad()
    def broadcast_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors, in place, what they are in the first process.

        Args:
            tensors: In the same order everywhere.
        """
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            with _in_touch():
                dist.broadcast(whole, 0)
            tensor.copy_(whole)

    def broadcast_state(self, *modules: nn.Module) -> None:
        """Begin with the same numbers everywhere: parameters and buffers of the first process. Random initialisation
        (new projections, an objective's own weights) may differ between processes.

        Args:
            modules: In the same order everywhere.
        """
        for module in modules:
            states = [*module.parameters(), *module.buffers()]
            self.broadcast_tensors(state for state in states if not nn.parameter.is_lazy(state))

    # --- decisions ---

    def largest(self, value: int) -> int:
        """Compare a number over the processes.

        Args:
            value: This process' own.

        Returns:
            The largest.
        """
        return int(self._reduced(value, dist.ReduceOp.MAX))

    def total(self, value: int) -> int:
        """Add up a number over the processes.

        Args:
            value: This process' own.

        Returns:
            The sum.
        """
        return int(self._reduced(value, dist.ReduceOp.SUM))

    def _reduced(self, value: int, operation: Any) -> int:
        number = torch.tensor(value, dtype=torch.int64)
        with _in_touch():
            dist.all_reduce(number, operation)
        return int(number)

    def broadcast_object(self, value: T | None) -> T:
        """Take over a value of the first process.

        Args:
            value: The first one's, which must be picklable; the others' is not looked at.

        Returns:
            What the first process has given.
        """
        box: list[Any] = [value]
        with _in_touch():
            dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    def gather_objects(self, value: T) -> list[T]:
        """Exchange a value with all processes.

        Args:
            value: This process' own, which must be picklable.

        Returns:
            Everyone's, in the order of the ranks.
        """
        box: list[Any] = [None] * self.world_size
        with _in_touch():
            dist.all_gather_object(box, value)
        return box

    def on_first(self, work: Callable[[], T]) -> T:
        """Let the first process alone do something (write, validate, print) while the others wait.

        Args:
            work: What it does.

        Returns:
            Its result, in every process. It must be picklable.

        Raises:
            CLIPFinetuningError: In the others, where ``work`` has raised; in the first process its error is raised as
                it is.
        """
        failure: str | None = None
        result: T | None = None
        if self.is_first:
            try:
                result = work()
            except BaseException as error:
                failure = f"{type(error).__name__}: {error}"
                # The others may be gone as well, and then this error is still the one to tell.
                with contextlib.suppress(CLIPFinetuningError):
                    self.broadcast_object((None, failure))
                raise
        result, failure = self.broadcast_object((result, failure))
        if failure is not None:
            raise CLIPFinetuningError(f"The first of {self.world_size} processes stopped with {failure}")
        return result  # type: ignore[return-value]

    def barrier(self) -> None:
        """Wait until every process has come here."""
        self.largest(0)  # not dist.barrier, which would occupy the GPU


class OneProcess:
    """What a ``ProcessGroup`` of one would do, so that a loop need not ask whether there are several."""

    rank, world_size, is_first = 0, 1, True

    def shard(self, size: int) -> slice:
        """Take this process' part of a batch.

        Args:
            size: Rows of the batch.

        Returns:
            The whole batch.
        """
        return slice(0, size)

    def total(self, value: int) -> int:
        """Add up a number over the processes.

        Args:
            value: This process' own.

        Returns:
            The value itself.
        """
        return value

    def largest(self, value: int) -> int:
        """Compare a number over the processes.

        Args:
            value: This process' own.

        Returns:
            The value itself.
        """
        return value

    def broadcast_object(self, value: T) -> T:
        """Take over a value of the first process.

        Args:
            value: This process' own; it need not be picklable.

        Returns:
            The value itself.
        """
        return value

    def gather_objects(self, value: T) -> list[T]:
        """Exchange a value with all processes.

        Args:
            value: This process' own; it need not be picklable.

        Returns:
            A list with the value alone.
        """
        return [value]

    def on_first(self, work: Callable[[], T]) -> T:
        """Do what the first process alone does.

        Args:
            work: What it does; what it raises is raised.

        Returns:
            Its result.
        """
        return work()

    def broadcast_state(self, *modules: nn.Module) -> None:
        """Nothing has to be done."""
        return


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Sequence[int], rank: int) -> Tensor:
        ctx.own = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        # Neither backend gathers tensors of different lengths: all are padded to the longest.
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        everyone = [torch.empty_like(padded) for _ in counts]
        with _in_touch():
            dist.all_gather(everyone, padded)
        return torch.cat([part[:count] for part, count in zip(everyone, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own], None, None


def world_size() -> int:
    """How many processes ``torchrun`` has started.

    Returns:
        1 without it.

    Raises:
        ConfigurationError: The environment says something that is no number.
    """
    return _whole_number("WORLD_SIZE", 1)


def local_world_size() -> int:
    """How many of the processes are on this machine and share its memory.

    Returns:
        1 without ``torchrun``.

    Raises:
        ConfigurationError: The environment says something that is no number.
    """
    return _whole_number("LOCAL_WORLD_SIZE", 1)


def claim_local_gpu(device: torch.device | None = None) -> None:
    """Make this process' own GPU the one that ``cuda`` means, where ``torchrun`` has started several processes.

    Best done before anything touches CUDA: every process would otherwise hold memory of the first GPU.

    Args:
        device: That the process will use; None where it is not known yet.

    Raises:
        DeviceError: There are more processes than GPUs.
    """
    if world_size() == 1 or (device is not None and device.type != "cuda") or not torch.cuda.is_available():
        return
    local, found = _whole_number("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= found:
        raise DeviceError(
            f"This is process {local + 1} on this machine and it has {found} GPU(s): start with "
            f"--nproc-per-node {found}, or set device=cpu"
        )
    torch.cuda.set_device(local)


def shard_of(size: int, rank: int, world_size: int) -> slice:
    """A process' part of the rows of a batch; parts differ by one row at most.

    Args:
        size: Rows of the batch.
        rank: Number of the process, from 0.
        world_size: How many processes there are.

    Returns:
        Their indices in the batch.
    """
    return slice(size * rank // world_size, size * (rank + 1) // world_size)


def _whole_number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdecimal() or (name.endswith("WORLD_SIZE") and int(text) < 1):
        raise ConfigurationError(f"The environment variable {name} must be a whole number (it is {text!r}): unset it")
    return int(text)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one kind, about ``_BUCKET_BYTES`` at a time."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size >= _BUCKET_BYTES or (tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel() * tensor.element_size()
    if bucket:
        yield bucket


@contextlib.contextmanager
def _in_touch(what: str = "This process has lost the others") -> Iterator[None]:
    """Say in a sentence what the backends say in RuntimeErrors of many lines."""
    try:
        yield
    except RuntimeError as error:  # torch.distributed's own errors are RuntimeErrors too
        first_line = str(error).strip().split("\n")[0][:300]
        raise CLIPFinetuningError(
            f"{what} ({first_line}). Usually one of them has stopped with an error of its own: look for that"
        ) from error
