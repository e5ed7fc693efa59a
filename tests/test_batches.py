"""Order, collating, workers, prefetching."""

from __future__ import annotations

import math
import threading
import time
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from domainclip.config import CLIPFinetuningConfig
from domainclip.data.batches import (
    EpochBatchSampler,
    PairCollator,
    PrefetchDataLoader,
    collate_fn,
    create_dataloader,
    create_train_val_dataloaders,
    create_training_loader,
)
from domainclip.data.dataset import CLIPDataset, RawItem
from domainclip.data.image_spec import ImageSpec
from domainclip.data.records import ImageTextPair
from domainclip.data.transforms import ImageTransform
from domainclip.errors import ConfigurationError, DataError, PictureError, ShapeError
from domainclip.models.tiny import make_tiny_clip


@pytest.fixture(scope="module")
def processor():
    return make_tiny_clip().processor


def config(**values) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{"num_workers": 0, **values})


def dataset(tiny_data, processor, augment: bool = False, **values) -> CLIPDataset:
    settings = config(**values)
    spec = ImageSpec(32, 32)
    transform = ImageTransform(settings.updated(image_resolution=32), augment=augment, spec=spec)
    return CLIPDataset(tiny_data.pairs(), processor, settings, transform)


def with_bad_picture(tiny_data, processor, tmp_path, **values) -> CLIPDataset:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no picture")
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
    assert lean["problems"] == []


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


def test_problems_are_left_out_and_named(tiny_data, processor, tmp_path):
    data = with_bad_picture(tiny_data, processor, tmp_path)
    batch = PairCollator(data)([data.fetch((0, row)) for row in (4, 5, 1)])
    assert batch["rows"] == [4, 1]
    assert batch["pixels"].shape[0] == len(batch["caption_index"]) == 2
    assert "broken" not in batch["captions"]
    ((path, reason),) = batch["problems"]
    assert path.endswith("bad.jpg")
    assert "bad.jpg" in reason


def test_batch_of_problems_alone(tiny_data, processor, tmp_path):
    data = with_bad_picture(tiny_data, processor, tmp_path)
    batch = PairCollator(data)([RawItem(5, 0, None, "why")])
    assert batch["pixels"] is None
    assert batch["rows"] == []
    assert batch["group_ids"].shape == batch["caption_index"].shape == (0,)


# --- order ---


def keys(sampler: EpochBatchSampler) -> list[list[tuple[int, int]]]:
    return list(sampler)


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed: int, epoch: int) -> list:
        torch.rand(seed + 3)  # whatever else drew random numbers
        sampler = EpochBatchSampler(50, 8, seed, shuffle=True, drop_last=True)
        sampler.set_position(epoch)
        return keys(sampler)

    assert order(1, 4) == order(1, 4)
    different = {str([[row for _, row in batch] for batch in order(s, e)]) for s in range(3) for e in range(3)}
    assert len(different) == 9


def test_every_row_once_an_epoch():
    sampler = EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=False)
    rows = [row for batch in sampler for _, row in batch]
    assert sorted(rows) == list(range(50))
    assert rows != list(range(50))
    still = EpochBatchSampler(50, 8, 0, shuffle=False, drop_last=False)
    assert [row for batch in still for _, row in batch] == list(range(50))


def test_position_gives_the_tail_of_the_full_order():
    whole = EpochBatchSampler(50, 8, 3, shuffle=True, drop_last=True)
    whole.set_position(2)
    batches = keys(whole)
    assert all(epoch == 2 for batch in batches for epoch, _ in batch)
    for skip in range(len(batches) + 1):
        sampler = EpochBatchSampler(50, 8, 3, shuffle=True, drop_last=True)
        sampler.set_position(2, skip)
        assert keys(sampler) == batches[skip:]
        assert len(sampler) == len(batches)  # the length is that of an epoch, wherever it starts


@pytest.mark.parametrize(
    ("rows", "size", "drop", "sizes"),
    [(20, 8, True, [8, 8]), (20, 8, False, [8, 8, 4]), (16, 8, True, [8, 8]), (5, 8, True, [5]), (8, 8, True, [8])],
)
def test_last_partial_batch_is_dropped_unless_it_is_the_only_one(rows, size, drop, sizes):
    sampler = EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=drop)
    assert [len(batch) for batch in sampler] == sizes
    assert len(sampler) == len(sizes)


# --- batches of look-alikes ---


def random_neighbours(rows: int, k: int, seed: int) -> torch.Tensor:
    """Any row numbers, the row itself and −1 among them."""
    return torch.randint(-1, rows, (rows, k), generator=torch.Generator().manual_seed(seed))


def look_alike_sampler(rows, size, share, neighbours, seed=0, drop_last=True, epoch=0, skip=0) -> EpochBatchSampler:
    sampler = EpochBatchSampler(rows, size, seed, shuffle=True, drop_last=drop_last, look_alike_share=share)
    sampler.set_neighbours(neighbours)
    sampler.set_position(epoch, skip)
    return sampler


def plain_look_alike_batches(order: list[int], size: int, share: Fraction, neighbours: list[list[int]]):
    """The definition, one row at a time; every row is used."""
    unused = dict.fromkeys(order)
    while unused:
        batch = list(unused)[: max(math.ceil((1 - share) * size), 1)]
        anchors = len(batch)
        for row in batch:
            del unused[row]
        for rank in range(len(neighbours[0])):
            for row in batch[:anchors]:
                alike = neighbours[row][rank]
                if len(batch) < size and alike in unused:
                    batch.append(alike)
                    del unused[alike]
        for row in list(unused)[: size - len(batch)]:
            batch.append(row)
            del unused[row]
        yield batch


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70),
    size=st.integers(1, 20),
    k=st.integers(1, 4),
    percent=st.integers(0, 100),
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 5),
)
def test_batches_of_look_alikes_are_as_defined(rows, size, k, percent, seed, epoch):
    neighbours = random_neighbours(rows, k, seed)
    make = partial(look_alike_sampler, rows, size, percent / 100, neighbours, seed, epoch=epoch)
    complete = keys(make(drop_last=False))
    got = [[row for _, row in batch] for batch in complete]
    order = make().order(epoch)
    assert got == list(plain_look_alike_batches(order, size, Fraction(percent, 100), neighbours.tolist()))
    assert sorted(row for batch in got for row in batch) == list(range(rows))
    assert {number for batch in complete for number, _ in batch} == {epoch}
    assert len(complete) == len(make(drop_last=False))
    assert keys(make()) == complete[: max(rows // size, 1)]  # drop_last leaves out the last and changes no other
    assert keys(make(drop_last=False)) == complete
    for skip in (0, 1, len(complete) // 2, len(complete)):
        assert keys(make(drop_last=False, skip=skip)) == complete[skip:]


def test_wide_windows_are_read_to_their_end():
    """More rows than the sampler looks ahead at once, and nearly all of them taken out of turn at the end."""
    rows, size = 3000, 10
    neighbours = random_neighbours(rows, 12, 5)
    order = EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=False).order(0)
    got = [[row for _, row in batch] for batch in look_alike_sampler(rows, size, 0.9, neighbours, drop_last=False)]
    assert got == list(plain_look_alike_batches(order, size, Fraction(9, 10), neighbours.tolist()))


def test_look_alikes_meet_more_often_than_by_chance():
    rows, size = 600, 20
    # Thirty kinds of twenty rows each; a row's neighbours are of its kind.
    kind = torch.randperm(rows, generator=torch.Generator().manual_seed(1)) % 30
    neighbours = torch.stack([(kind == kind[row]).nonzero().flatten().roll(-row)[:8] for row in range(rows)])

    def meetings(share: float) -> int:
        total = 0
        for batch in look_alike_sampler(rows, size, share, neighbours):
            kinds = kind[[row for _, row in batch]]
            total += int((kinds[:, None] == kinds).sum()) - size
        return total

    # By chance each of 20·19 ordered pairs of a batch is of one kind with probability 19/599: 362 in 30 batches.
    assert 250 < meetings(0) < 480
    assert meetings(0.5) > 2 * meetings(0)
    assert meetings(0.9) > meetings(0.5)


def test_share_of_a_batch_is_not_lost_to_binary_fractions():
    neighbours = (torch.arange(5000)[:, None] + torch.arange(1, 5)) % 5000
    for percent in range(1, 100):  # 0.29 × 100 is 28.999… in binary
        first = next(iter(look_alike_sampler(5000, 100, percent / 100, neighbours)))
        order = EpochBatchSampler(5000, 100, 0, shuffle=True, drop_last=True).order(0)
        assert [row for _, row in first[: 100 - percent]] == order[: 100 - percent]
        assert first[100 - percent][1] != order[100 - percent]


def test_hardest_neighbours_come_first_and_every_anchor_has_a_turn():
    rows, size = 100, 8
    neighbours = torch.stack([(torch.arange(rows) + step) % rows for step in (50, 1, 2)], dim=1)
    first = next(iter(look_alike_sampler(rows, size, 0.5, neighbours)))
    anchors, alike = [row for _, row in first[:4]], [row for _, row in first[4:]]
    assert anchors == EpochBatchSampler(rows, size, 0, shuffle=True, drop_last=True).order(0)[:4]
    assert not {(row + 50) % rows for row in anchors} & set(anchors)  # else some would have been used
    assert alike == [(row + 50) % rows for row in anchors]


def test_without_neighbours_share_or_shuffling_the_order_is_the_plain_one():
    neighbours = random_neighbours(50, 4, 0)
    plain = EpochBatchSampler(50, 8, 7, shuffle=True, drop_last=False)
    # Written out, so that a change of the order that both would share shows.
    order = torch.randperm(50, generator=torch.Generator().manual_seed(7 * 1_000_003)).tolist()
    expected = [[(0, row) for row in order[start : start + 8]] for start in range(0, 50, 8)]
    assert keys(plain) == expected
    sampler = look_alike_sampler(50, 8, 0.5, None, seed=7, drop_last=False)
    assert keys(sampler) == expected
    sampler.set_neighbours(neighbours)
    assert keys(sampler) != expected
    sampler.set_neighbours(None)
    assert keys(sampler) == expected
    for share in (0.0, 0.1):  # a tenth of 8 is no whole row
        assert keys(look_alike_sampler(50, 8, share, neighbours, seed=7, drop_last=False)) == expected
    still = EpochBatchSampler(50, 8, 7, shuffle=False, drop_last=False, look_alike_share=0.5)
    still.set_neighbours(neighbours)
    assert [row for batch in still for _, row in batch] == list(range(50))


def test_new_neighbours_do_not_reach_an_epoch_under_way():
    first, second = random_neighbours(50, 4, 0), random_neighbours(50, 4, 1)
    sampler = look_alike_sampler(50, 8, 0.5, first)
    expected, running = keys(sampler), iter(sampler)
    got = [next(running)]
    sampler.set_neighbours(second)
    sampler.set_position(3)
    assert [*got, *running] == expected
    assert keys(sampler) == keys(look_alike_sampler(50, 8, 0.5, second, epoch=3)) != expected
    second.fill_(-1)  # the caller's own tensor
    assert keys(sampler) == keys(look_alike_sampler(50, 8, 0.5, random_neighbours(50, 4, 1), epoch=3))


def test_neighbours_and_shares_that_do_not_fit():
    for share in (-0.1, 1.1):
        with pytest.raises(ConfigurationError, match="look_alike_share must be in 0…1"):
            EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=True, look_alike_share=share)
    sampler = EpochBatchSampler(50, 8, 0, shuffle=True, drop_last=True, look_alike_share=0.5)
    for wrong, message in (
        (torch.zeros(49, 2, dtype=torch.long), r"Expected neighbours of shape \[50, k\].*\(49, 2\)"),
        (torch.zeros(50, dtype=torch.long), "Expected neighbours of shape"),
        (torch.zeros(50, 2), "row numbers, got torch.float32"),
        (torch.full((50, 2), 50), "must be in -1…49, got 50…50"),
        (torch.full((50, 2), -2), "must be in -1…49"),
    ):
        with pytest.raises(ShapeError, match=message):
            sampler.set_neighbours(wrong)
    sampler.set_neighbours(torch.zeros(50, 0, dtype=torch.long))
    assert sorted(len(batch) for batch in sampler) == [8] * 6


# --- loaders ---


def read(loader, epochs: int = 2) -> list[dict]:
    batches = []
    for epoch in range(epochs):
        loader.batch_sampler.set_position(epoch)
        batches += list(loader)
    return batches


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_do_not_depend_on_the_number_of_workers(tiny_data, processor, method):
    alone = read(create_training_loader(dataset(tiny_data, processor, augment=True), config(), 5))
    settings = config(num_workers=2)
    loader = create_training_loader(dataset(tiny_data, processor, augment=True, num_workers=2), settings, 5)
    loader.multiprocessing_context = method
    together = read(loader)
    assert len(alone) == len(together) == 6
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
    assert not torch.equal(alone[0]["pixels"], alone[3]["pixels"])


def test_global_random_state_is_not_moved_by_a_training_loader(tiny_data, processor):
    loader = create_training_loader(dataset(tiny_data, processor, augment=True), config(), 5)
    state = torch.get_rng_state()
    read(loader)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_loader_brings_look_alikes_together(tiny_data, processor):
    rows = len(tiny_data.pairs())
    neighbours = random_neighbours(rows, 3, 0)
    settings = config(look_alike_share=0.5)
    loader = create_training_loader(dataset(tiny_data, processor), settings, 5)
    loader.batch_sampler.set_neighbours(neighbours)
    expected = keys(look_alike_sampler(rows, 5, 0.5, neighbours, settings.seed))
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
    loader = create_training_loader(dataset(tiny_data, processor), config(), 5)
    prefetched = PrefetchDataLoader(loader, "cpu")
    assert len(prefetched) == 3
    for one, other in zip(list(loader), list(prefetched), strict=True):
        assert one["rows"] == other["rows"]
        assert torch.equal(one["pixels"], other["pixels"])
    assert prefetch_threads() == []


def test_prefetching_moves_tensors_to_the_device(tiny_data, processor):
    loader = create_training_loader(dataset(tiny_data, processor), config(), 5)
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
    loader = create_training_loader(dataset(tiny_data, processor), config(), 1)
    reader = iter(PrefetchDataLoader(loader, depth=1))
    next(reader)
    assert len(prefetch_threads()) == 1
    started = time.monotonic()
    reader.close()
    assert prefetch_threads() == []
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_makes_a_bad_picture_fatal_in_one_sentence(tiny_data, processor, tmp_path, workers):
    values = {"strict": True, "num_workers": workers}
    loader = create_training_loader(with_bad_picture(tiny_data, processor, tmp_path, **values), config(**values), 2)
    if workers:
        loader.multiprocessing_context = "fork"
    with pytest.raises(PictureError, match=r"bad\.jpg") as caught:
        list(PrefetchDataLoader(loader))
    assert "Traceback" not in str(caught.value)
    assert "\n" not in str(caught.value)
