"""Rows to batches: collating, workers, prefetching."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from domainclip.config import CLIPFinetuningConfig, DataSettings
from domainclip.data.captions.text_transform import padded
from domainclip.data.dataset import CLIPDataset, RawItem
from domainclip.data.readers import lack_of_shared_memory, reader_processes, without_readers
from domainclip.data.sampler import EpochBatchSampler
from domainclip.data.step_plan import StepPlan
from domainclip.errors import ConfigurationError, DataError, ImageError, InputTypeError

Batch = dict[str, Any]


def collate_fn(items: Sequence[dict[str, Any]]) -> Batch:
    """Stack items of ``CLIPDataset`` as they are.

    Args:
        items: One at least.

    Returns:
        ``pixel_values`` float32 ``[B, 3, R, R]``, normalised; ``input_ids`` and ``attention_mask`` int64 ``[B, L]`` at
        full text length; ``image_paths`` and ``captions``, every one.
    """
    tensors = ("pixel_values", "input_ids", "attention_mask")
    return _shared(
        {
            **{name: torch.stack([item[name] for item in items]) for name in tensors},
            "image_paths": [item["image_path"] for item in items],
            "captions": [item["caption"] for item in items],
        }
    )


def _shared(batch: Batch) -> Batch:
    """In a worker process: the tensors in shared memory now, where a lack of it is an error that reaches the trainer.
    torch would move them in a thread of its own, whose error leaves the trainer waiting for ever."""
    if get_worker_info() is not None:
        for value in batch.values():
            if isinstance(value, Tensor):
                value.share_memory_()
    return batch


class PairCollator:
    """Raw items to the trainer's batch, with no work done twice.

    - ``pixels`` uint8 ``[B, 3, R, R]``: bytes travel, the device normalises. R is one for a batch, and may be another
      for the next (``StepPlan``).
    - ``input_ids``, ``attention_mask`` int64 ``[U, L]``: the U distinct texts of the batch, padded to the longest
      (to the full length where the text tower needs it), and ``caption_index`` int64 ``[B]``: the text of each row.
    - ``group_ids`` int64 ``[B]``, ``rows``, ``image_paths``, ``captions``.
    - ``skipped``: (image, reason) of rows left out because their image cannot be read.

    ``pad_to_multiple``: round the length up, and above 8, where the device keeps memory for every shape it has
    seen (MPS).
    """

    def __init__(self, dataset: CLIPDataset, pad_to_multiple: int = 1) -> None:
        self.tokens = dataset.tokens
        self.texts = dataset.texts
        self.group_ids = dataset.group_ids
        self.paths = [str(pair.image_path) for pair in dataset.pairs]
        self.pad_token_id = dataset.pad_token_id
        self.fixed_length = dataset.text_length if dataset.fixed_length else None
        self.text_length = dataset.text_length
        self.strict = dataset.config.strict
        self.pad_to_multiple = pad_to_multiple

    def length(self, longest: int) -> int:
        """The length that a batch's texts are padded to.

        Args:
            longest: Tokens of its longest text.

        Returns:
            Tokens, at most the text tower's; always those where it needs the full length.
        """
        if self.fixed_length is not None:
            return self.fixed_length
        rounded = -(-longest // self.pad_to_multiple) * self.pad_to_multiple
        return min(max(rounded, 9 if self.pad_to_multiple > 1 else 1), self.text_length)

    def __call__(self, items: Sequence[RawItem]) -> Batch:
        good = [item for item in items if item.pixels is not None]
        distinct = list(dict.fromkeys(item.text for item in good))
        index_of = {text: index for index, text in enumerate(distinct)}
        tokens = [self.tokens[text] for text in distinct]
        length = self.length(max((len(ids) for ids in tokens), default=1))
        input_ids, attention_mask = padded(tokens, length, self.pad_token_id)
        rows = [item.row for item in good]
        batch = {
            "pixels": torch.stack([item.pixels for item in good if item.pixels is not None]) if good else None,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "caption_index": torch.tensor([index_of[item.text] for item in good], dtype=torch.long),
            "group_ids": self.group_ids[torch.tensor(rows, dtype=torch.long)],
            "rows": rows,
            "image_paths": [self.paths[row] for row in rows],
            "captions": [self.texts[item.text] for item in good],
            "skipped": [(self.paths[item.row], item.problem) for item in items if item.pixels is None],
        }
        return _shared(batch)


class _RawView(Dataset):
    """The data set read through ``fetch``."""

    def __init__(self, dataset: CLIPDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> RawItem:
        try:
            return self.dataset.fetch(key)
        except ImageError as error:  # strict
            if get_worker_info() is None:
                raise
            # Raised here it would reach the user wrapped into the worker's traceback; PrefetchDataLoader raises it.
            row = key[1] if isinstance(key, tuple) else key
            return RawItem(row, self.dataset.text_index(key), None, str(error))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and torchrun's SIGTERM go to a whole process group: a reader that died of one would spoil the step that is
    to be finished and saved. In a group of its own it is left alone, and still ends with the process it reads for."""
    if hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)


def create_training_loader(
    dataset: CLIPDataset, settings: DataSettings, plan: StepPlan, pad_to_multiple: int = 1
) -> DataLoader:
    """The trainer's own loader: lean batches, and a sampler with a position (``loader.batch_sampler``) and the plan of
    the whole training (``loader.batch_sampler.plan``).

    ``hard_negative_batch_fraction`` takes effect once the sampler is given neighbours (``set_neighbours``).

    Args:
        dataset: The training split.
        settings: Of a resolved recipe: order, hard negatives and readers.
        plan: The batches of the whole training.
        pad_to_multiple: As for ``PairCollator``.

    Returns:
        The loader, of batches as ``PairCollator`` makes them.

    Raises:
        ConfigurationError: The data set's transform does not fit the plan.
    """
    transform = dataset.image_transform
    if plan.resolutions[-1] > transform.largest_resolution:
        raise ConfigurationError(
            f"The recipe trains at up to {plan.resolutions[-1]} pixels, but the data set's transform keeps images for "
            f"{transform.largest_resolution} and would blow them up: make it with "
            f"largest_resolution={plan.resolutions[-1]}"
        )
    sampler = EpochBatchSampler(
        len(dataset),
        plan.batch_schedule.largest,
        settings.seed,
        settings.shuffle,
        drop_last=True,
        hard_negative_batch_fraction=settings.hard_negative_batch_fraction,
        plan=plan,
    )
    readers = reader_processes(settings.num_workers, dataset.users_own)
    return DataLoader(
        _RawView(dataset),
        batch_sampler=sampler,
        collate_fn=PairCollator(dataset, pad_to_multiple),
        num_workers=readers,
        persistent_workers=readers > 0,
        prefetch_factor=2 if readers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
        # A loader without one draws from the global generator at every epoch, which a resumed run would repeat.
        generator=torch.Generator().manual_seed(settings.seed),
    )


def create_dataloader(
    dataset: Dataset,
    config: CLIPFinetuningConfig,
    batch_size: int | None = None,
    shuffle: bool | None = None,
    drop_last: bool | None = None,
    num_workers: int | None = None,
) -> DataLoader:
    """A plain ``DataLoader`` of ``collate_fn`` batches.

    Args:
        dataset: A data set with a length, of items as ``CLIPDataset`` gives them.
        config: The recipe: workers, seed, and what is left out here.
        batch_size: The recipe's, or 32, if left out.
        shuffle: The recipe's, if left out.
        drop_last: Whether a last partial batch is dropped, unless that would leave none; as ``shuffle``, if left out.
        num_workers: Processes that read; the recipe's, if left out. 0 reads in this process, as does a script without a
            guard where processes are spawned (see ``data.readers``).

    Returns:
        The loader.

    Raises:
        DataError: The data set is empty.
        ConfigurationError: The batch size is below 1, or the number of workers below 0.
    """
    if not isinstance(config, DataSettings):
        raise InputTypeError(f"config is a {type(config).__name__}: give a CLIPFinetuningConfig")
    size = batch_size if batch_size is not None else config.batch_size or 32
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigurationError(f"Batch size must be positive, and a whole number (batch_size={size!r})")
    workers = config.num_workers if num_workers is None else num_workers
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
        raise ConfigurationError(f"num_workers must be zero or more, and a whole number (num_workers={workers!r})")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputTypeError(f"A {type(dataset).__name__} is no data set with a length and rows, such as a CLIPDataset")
    workers = reader_processes(workers, dataset.users_own if isinstance(dataset, CLIPDataset) else [type(dataset)])
    rows = len(dataset)
    if rows == 0:
        raise DataError("No valid image-text pairs: the data set is empty")
    shuffle = config.shuffle if shuffle is None else shuffle
    drop_last = shuffle if drop_last is None else drop_last
    return DataLoader(
        dataset,
        batch_size=size,
        shuffle=shuffle,
        drop_last=drop_last and rows >= size,
        num_workers=workers,
        collate_fn=collate_fn,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(config.seed),
    )


def create_train_val_dataloaders(
    train_dataset: Dataset,
    val_dataset: Dataset,
    config: CLIPFinetuningConfig,
    batch_size: int | None = None,
    num_workers: int | None = None,
) -> tuple[DataLoader, DataLoader]:
    """A loader for training, shuffled as the recipe says, and an ordered, complete one for validation.

    Args:
        train_dataset: As for ``create_dataloader``.
        val_dataset: As for ``create_dataloader``.
        config: As for ``create_dataloader``.
        batch_size: Of both; the recipe's, or 32, if left out.
        num_workers: As for ``create_dataloader``.

    Returns:
        The two loaders.

    Raises:
        DataError: A data set is empty.
        ConfigurationError: The batch size is below 1.
    """
    return (
        create_dataloader(train_dataset, config, batch_size, num_workers=num_workers),
        create_dataloader(val_dataset, config, batch_size, shuffle=False, drop_last=False, num_workers=num_workers),
    )


class PrefetchDataLoader:
    """Prepares the next batches in a thread and puts their tensors on the device while the last one is trained.

    Reading images releases the interpreter lock, so one thread overlaps with the training even without worker
    processes. An error in the thread is raised where the batch was awaited.
    """

    def __init__(self, loader: DataLoader, device: torch.device | str = "cpu", depth: int = 2) -> None:
        self.loader = loader
        self.device = torch.device(device)
        self.depth = depth

    def __len__(self) -> int:
        return len(self.loader)

    def _on_device(self, batch: Batch) -> Batch:
        if self.device.type == "cpu":
            return batch
        non_blocking = self.device.type == "cuda"
        return {
            key: value.to(self.device, non_blocking=non_blocking) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }

    def __iter__(self) -> Iterator[Batch]:
        ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=self.depth)
        stop = threading.Event()
        strict = getattr(self.loader.collate_fn, "strict", False)

        def put(kind: str, value: Any) -> bool:
            while not stop.is_set():
                try:
                    ready.put((kind, value), timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def read() -> None:
            try:
                for batch in self.loader:
                    if strict and batch["skipped"]:
                        raise ImageError(batch["skipped"][0][1])
                    if not put("batch", batch):
                        return
                put("end", None)
            except BaseException as error:
                put("error", error)

        thread = threading.Thread(target=read, name="domainclip-prefetch", daemon=True)
        thread.start()
        try:
            while True:
                kind, value = ready.get()
                if kind == "end":
                    return
                if kind == "error":
                    meant = lack_of_shared_memory(value)
                    if meant is None and isinstance(value, RuntimeError):
                        meant = without_readers(value)
                    if meant is not None:
                        raise meant from None
                    raise value
                # The device is driven from this thread alone (MPS wants a single one).
                yield self._on_device(value)
        finally:
            stop.set()
            thread.join(timeout=10)
