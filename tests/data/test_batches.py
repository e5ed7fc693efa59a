"""Order, collating, workers, prefetching."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from batch_cases import hard_negative_sampler, keys, random_neighbours, training_loader
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.batches import (
    PairCollator,
    PrefetchDataLoader,
    collate_fn,
    create_dataloader,
    create_train_val_dataloaders,
)
from domainclip.data.dataset import CLIPDataset, RawItem
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.errors import ConfigurationError, DataError, ImageError, MemoryConstraintError


def config(**values) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{"num_workers": 0, **values})


def dataset(tiny_data, processor, augment: bool = False, **values) -> CLIPDataset:
    settings = config(**values)
    spec = ImageSpec(32, 32)
    transform = ImageTransform(settings.updated(image_resolution=32), augment=augment, spec=spec)
    return CLIPDataset(tiny_data.pairs(), processor, settings, transform)


def with_unreadable_image(tiny_data, processor, tmp_path, **values) -> CLIPDataset:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no image")
    pairs = [*tiny_data.pairs()[:5], ImageTextPair(bad, "broken")]
    return CLIPDataset(pairs, processor, config(**values))


# --- collating ---


def test_plain_collate_has_the_keys_of_the_api(tiny_data, processor):
    data = dataset(tiny_data, processor)
    batch = collate_fn([data[row] for row in (2, 0, 1)])
    assert batch.keys() == {"pixel_values", "input_ids", "attention_mask", "image_paths", "captions"}
    assert batch["pixel_values"].shape == (3, 3, 32, 32)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 77)
    assert batch["captions"] == [data.pairs[row].caption for row in (2, 0, 1)]
    assert batch["image_paths"] == [str(data.pairs[row].image_path) for row in (2, 0, 1)]


def test_lean_batch_says_the_same_as_the_plain_one(tiny_data, processor):
    data = dataset(tiny_data, processor)
    rows = [0, 3, 7, 0, 11, 9, 3]
    plain = collate_fn([data[row] for row in rows])
    lean = PairCollator(data)([data.fetch((0, row)) for row in rows])
    assert lean["pixels"].dtype == torch.uint8
    assert torch.equal(data.image_transform.spec.normalise(lean["pixels"]), plain["pixel_values"])
    longest = int(plain["attention_mask"].sum(1).max())
    for key in ("input_ids", "attention_mask"):
        assert lean[key].shape[1] == longest
        assert torch.equal(lean[key][lean["caption_index"]], plain[key][:, :longest])
    assert lean["captions"] == plain["captions"]
    assert lean["image_paths"] == plain["image_paths"]
    assert lean["rows"] == rows
    assert torch.equal(lean["group_ids"], data.group_ids[rows])
    assert lean["skipped"] == []


def test_equal_captions_are_tokenised_once(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    pairs = [ImageTextPair(path, text) for text in ("same", "other", " same ", "same")]
    data = CLIPDataset(pairs, processor, config())
    batch = PairCollator(data)([data.fetch(row) for row in range(4)])
    assert batch["input_ids"].shape[0] == 2
    assert batch["caption_index"].tolist() == [0, 1, 0, 0]


def test_lengths(tiny_data, processor):
    data = dataset(tiny_data, processor)
    assert [PairCollator(data).length(n) for n in (1, 5, 77, 90)] == [1, 5, 77, 77]
    # On MPS a few lengths only, and never 8 or fewer.
    assert [PairCollator(data, 16).length(n) for n in (1, 16, 17, 70)] == [16, 16, 32, 77]
    assert [PairCollator(data, 4).length(n) for n in (1, 8, 9)] == [9, 9, 12]
    fixed = SimpleNamespace(
        tokenizer=processor.tokenizer, image_processor=processor.image_processor, text_padding="fixed", max_length=64
    )
    whole = CLIPDataset(tiny_data.pairs(), fixed, config())
    assert PairCollator(whole)([whole.fetch(0), whole.fetch(1)])["input_ids"].shape[1] == 64


def test_padding_is_the_pad_token_and_masked(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    data = CLIPDataset([(path, "a"), (path, "a much longer caption of many words")], processor, config())
    batch = PairCollator(data)([data.fetch(0), data.fetch(1)])
    short = int(batch["attention_mask"][0].sum())
    assert batch["input_ids"][0, :short].tolist() == processor.tokenizer("a")["input_ids"]
    assert (batch["input_ids"][0, short:] == processor.tokenizer.pad_token_id).all()
    assert batch["attention_mask"][1].all()


def test_skipped_rows_are_left_out_and_named(tiny_data, processor, tmp_path):
    data = with_unreadable_image(tiny_data, processor, tmp_path)
    batch = PairCollator(data)([data.fetch((0, row)) for row in (4, 5, 1)])
    assert batch["rows"] == [4, 1]
    assert batch["pixels"].shape[0] == len(batch["caption_index"]) == 2
    assert "broken" not in batch["captions"]
    ((path, reason),) = batch["skipped"]
    assert path.endswith("bad.jpg")
    assert "bad.jpg" in reason


def test_batch_of_skipped_rows_alone(tiny_data, processor, tmp_path):
    data = with_unreadable_image(tiny_data, processor, tmp_path)
    batch = PairCollator(data)([RawItem(5, 0, None, "why")])
    assert batch["pixels"] is None
    assert batch["rows"] == []
    assert batch["group_ids"].shape == batch["caption_index"].shape == (0,)


# --- loaders ---


def read(loader, epochs: int = 2) -> list[dict]:
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.set_position(epoch)
        batches += list(loader)
    return batches


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_do_not_depend_on_the_number_of_workers(tiny_data, processor, method):
    alone = read(training_loader(dataset(tiny_data, processor, augment=True), config(), 5))
    settings = config(num_workers=2)
    loader = training_loader(dataset(tiny_data, processor, augment=True, num_workers=2), settings, 5)
    loader.multiprocessing_context = method
    together = read(loader)
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
    assert not torch.equal(alone[0]["pixels"], alone[3]["pixels"])


def test_global_random_state_is_not_moved_by_a_training_loader(tiny_data, processor):
    loader = training_loader(dataset(tiny_data, processor, augment=True), config(), 5)
    state = torch.get_rng_state()
    read(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_loader_brings_hard_negatives_together(tiny_data, processor):
    rows = len(tiny_data.pairs())
    neighbours = random_neighbours(rows, 3, 0)
    settings = config(hard_negative_batch_fraction=0.5)
    loader = training_loader(dataset(tiny_data, processor), settings, 5)
    loader.batch_sampler.set_neighbours(neighbours)
    expected = keys(hard_negative_sampler(rows, 5, 0.5, neighbours, settings.seed))
    assert [batch["rows"] for batch in loader] == [[row for _, row in batch] for batch in expected]


def test_create_dataloader(tiny_data, processor):
    data = dataset(tiny_data, processor)
    settings = config(batch_size=4)
    first, again = (list(create_dataloader(data, settings)) for _ in range(2))
    assert [len(batch["captions"]) for batch in first] == [4] * 4  # shuffled: the partial fifth is dropped
    assert [batch["image_paths"] for batch in first] == [batch["image_paths"] for batch in again]
    paths = [
        path
        for batch in create_dataloader(data, settings, batch_size=7, shuffle=False)
        for path in batch["image_paths"]
    ]
    assert paths == [str(pair.image_path) for pair in data.pairs]
    assert [len(batch["captions"]) for batch in create_dataloader(data, settings, batch_size=100)] == [18]
    assert [len(b["captions"]) for b in create_dataloader(data, settings, batch_size=10, drop_last=False)] == [10, 8]
    unset = next(iter(create_dataloader(data, config())))
    assert len(unset["captions"]) == 18
    for size in (0, -1):
        with pytest.raises(ConfigurationError, match="Batch size must be positive"):
            create_dataloader(data, settings, batch_size=size)
    with pytest.raises(DataError, match="No valid image-text pairs"):
        create_dataloader([], settings)


def test_train_and_val_loaders(tiny_data, processor):
    data = dataset(tiny_data, processor)
    val = CLIPDataset(tiny_data.pairs("val"), processor, config())
    train_loader, val_loader = create_train_val_dataloaders(data, val, config(), batch_size=4)
    assert len(train_loader) == 4
    assert [path for batch in val_loader for path in batch["image_paths"]] == [str(p.image_path) for p in val.pairs]
    order = [path for batch in train_loader for path in batch["image_paths"]]
    assert order != sorted(order)


# --- prefetching ---


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "domainclip-prefetch"]


def test_prefetching_changes_nothing(tiny_data, processor):
    loader = training_loader(dataset(tiny_data, processor), config(), 5)
    prefetched = PrefetchDataLoader(loader, "cpu")
    assert len(prefetched) == 3
    for one, other in zip(list(loader), list(prefetched), strict=True):
        assert one["rows"] == other["rows"]
        assert torch.equal(one["pixels"], other["pixels"])
    assert prefetch_threads() == []


def test_prefetching_moves_tensors_to_the_device(tiny_data, processor):
    loader = training_loader(dataset(tiny_data, processor), config(), 5)
    batch = next(iter(PrefetchDataLoader(loader, "meta")))
    assert batch["pixels"].device.type == "meta"
    assert isinstance(batch["captions"], list)


def test_error_in_the_thread_reaches_the_reader():
    class Broken(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> int:
            if index == 3:
                raise RuntimeError("row 3 is broken")
            return index

    got = []

    def consume() -> None:
        for batch in PrefetchDataLoader(DataLoader(Broken(), batch_size=1)):
            got.append(int(batch))

    with pytest.raises(RuntimeError, match="row 3 is broken"):
        consume()
    assert got == [0, 1, 2]
    assert prefetch_threads() == []


def test_abandoned_reader_stops_its_thread(tiny_data, processor):
    loader = training_loader(dataset(tiny_data, processor), config(), 1)
    collate, made = loader.collate_fn, []
    loader.collate_fn = lambda rows: made.append(len(rows)) or collate(rows)
    reader = iter(PrefetchDataLoader(loader, depth=1))
    next(reader)
    assert len(prefetch_threads()) == 1
    reader.close()
    assert prefetch_threads() == []
    assert len(made) <= 3 < len(loader)  # the one that was taken, one in the queue, one in the thread's hands


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_makes_a_bad_image_fatal_in_one_sentence(tiny_data, processor, tmp_path, workers):
    values = {"strict": True, "num_workers": workers}
    loader = training_loader(with_unreadable_image(tiny_data, processor, tmp_path, **values), config(**values), 2)
    if workers:
        loader.multiprocessing_context = "fork"
    with pytest.raises(ImageError, match=r"bad\.jpg") as caught:
        list(PrefetchDataLoader(loader))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_lack_of_shared_memory_is_named_and_does_not_hang(tiny_data, processor, monkeypatch):
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    data = dataset(tiny_data, processor, num_workers=1)
    with pytest.raises(MemoryConstraintError, match=r"num_workers=0.*--shm-size"):
        list(PrefetchDataLoader(training_loader(data, config(num_workers=1), 4)))
