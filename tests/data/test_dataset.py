"""Pairs as a data set: items, texts, groups, and the cache of decoded images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from batch_cases import training_loader
from domainclip.config import CLIPFinetuningConfig
from domainclip.data.dataset import CLIPDataset, MultiCaptionCLIPDataset
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.store import ImageStore
from domainclip.data.images.transforms import ImageTransform
from domainclip.data.records import ImageTextPair
from domainclip.errors import DataError, ImageError


def config(**values) -> CLIPFinetuningConfig:
    return CLIPFinetuningConfig(**{"num_workers": 0, **values})


def augmented(settings: CLIPFinetuningConfig) -> ImageTransform:
    spec = ImageSpec(32, 32)
    return ImageTransform(settings.updated(image_resolution=32), augment=True, spec=spec)


def test_item_has_the_keys_shapes_and_types_of_the_api(tiny_data, processor):
    pairs = tiny_data.pairs()
    data = CLIPDataset(pairs, processor, config())
    assert len(data) == len(pairs) == 18
    item = data[3]
    assert item.keys() == {"pixel_values", "input_ids", "attention_mask", "image_path", "caption"}
    assert (item["pixel_values"].shape, item["pixel_values"].dtype) == ((3, 32, 32), torch.float32)
    assert (item["input_ids"].shape, item["input_ids"].dtype) == ((77,), torch.int64)
    assert (item["attention_mask"].shape, item["attention_mask"].dtype) == ((77,), torch.int64)
    assert item["image_path"] == str(pairs[3].image_path)
    assert item["caption"] == pairs[3].caption


def test_item_equals_the_models_own_processor(tiny_data, processor):
    pairs = tiny_data.pairs()
    data = CLIPDataset(pairs, processor, config())
    for row in (0, 1, 17):
        item = data[row]
        want = processor.tokenizer(pairs[row].caption, padding="max_length", max_length=77, truncation=True)
        assert item["input_ids"].tolist() == want["input_ids"]
        assert item["attention_mask"].tolist() == want["attention_mask"]
        pixels = processor(images=Image.open(pairs[row].image_path).convert("RGB"))["pixel_values"][0]
        assert (item["pixel_values"] - torch.as_tensor(np.asarray(pixels))).abs().max() < 2.01 / 255 / 0.26


def test_processor_of_the_transformers_kind_gives_the_same_items(tiny_data, processor):
    theirs = SimpleNamespace(tokenizer=processor.tokenizer, image_processor=processor.image_processor)
    ours, other = (CLIPDataset(tiny_data.pairs(), p, config(max_sequence_length=12)) for p in (processor, theirs))
    for row in range(len(ours)):
        for key in ("pixel_values", "input_ids", "attention_mask"):
            assert torch.equal(ours[row][key], other[row][key])
    assert ours[0]["input_ids"].shape == (12,)


def test_plain_tuples_are_pairs(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    data = CLIPDataset([(path, "a caption"), (str(path), "another")], processor, config())
    assert data[1]["caption"] == "another"
    assert data[1]["image_path"] == str(path)


def test_empty_is_an_error(processor):
    with pytest.raises(DataError, match="No valid image-text pairs"):
        CLIPDataset([], processor, config())
    with pytest.raises(ValueError, match="No valid image-text pairs"):
        MultiCaptionCLIPDataset([], processor, config())


def test_indexing(tiny_data, processor):
    data = CLIPDataset(tiny_data.pairs(), processor, config())
    assert data[-1]["image_path"] == data[17]["image_path"]
    assert torch.equal(data[-18]["pixel_values"], data[0]["pixel_values"])
    for wrong in (18, -19):
        with pytest.raises(IndexError, match=f"row {wrong} of 18"):
            data[wrong]
    assert sum(1 for _ in data) == 18  # iterating ends by itself


def test_long_caption_is_cut_with_its_end_token(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    data = CLIPDataset([(path, "brick " * 2000), (path, "b")], processor, config(max_sequence_length=10))
    assert data[0]["attention_mask"].sum() == 10
    assert data[0]["input_ids"][-1] == processor.tokenizer.eos_token_id


def test_fixed_text_length_is_never_shortened(tiny_data, processor):
    fixed = SimpleNamespace(
        tokenizer=processor.tokenizer, image_processor=processor.image_processor, text_padding="fixed", max_length=64
    )
    for length in (32, 77):
        assert CLIPDataset(tiny_data.pairs(), fixed, config(max_sequence_length=length)).text_length == 64


def test_text_transform_is_used(tiny_data, processor):
    data = CLIPDataset(tiny_data.pairs(), processor, config(), text_transform=str.upper)
    assert data[0]["caption"] == tiny_data.pairs()[0].caption.upper()


def test_groups_by_caption_and_by_label(tiny_data, processor):
    pairs = tiny_data.pairs()
    by_caption = CLIPDataset(pairs, processor, config()).group_ids
    by_label = CLIPDataset(pairs, processor, config(positives="label")).group_ids
    for i, one in enumerate(pairs):
        for j, other in enumerate(pairs):
            assert (by_caption[i] == by_caption[j]) == (one.caption == other.caption)
            assert (by_label[i] == by_label[j]) == (one.label == other.label)
    assert by_caption.dtype == torch.int64


def test_rows_without_a_label_are_grouped_by_caption(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    pairs = [
        ImageTextPair(path, "x", "a"),
        ImageTextPair(path, "x"),
        ImageTextPair(path, " x "),
        ImageTextPair(path, "a"),
    ]
    ids = CLIPDataset(pairs, processor, config(positives="label")).group_ids.tolist()
    assert ids == [0, 1, 1, 2]


def test_several_captions_vary_by_epoch_and_are_drawn_alike_each_time(tiny_data, processor):
    path = tiny_data.pairs()[0].image_path
    captions = [f"caption {index}" for index in range(5)]
    items = {path: captions, tiny_data.pairs()[1].image_path: ["only one"]}
    data, again = (MultiCaptionCLIPDataset(items, processor, config()) for _ in range(2))
    assert len(data) == 2
    drawn = [data[epoch, 0]["caption"] for epoch in range(60)]
    assert drawn == [again[epoch, 0]["caption"] for epoch in range(60)]
    assert set(drawn) == set(captions)
    assert {data[epoch, 1]["caption"] for epoch in range(9)} == {"only one"}
    other_seed = MultiCaptionCLIPDataset(items, processor, config(seed=7))
    assert drawn != [other_seed[epoch, 0]["caption"] for epoch in range(60)]


def test_rows_of_one_image_are_gathered(tiny_data, processor):
    pairs = tiny_data.pairs()
    doubled = [*pairs, *(ImageTextPair(pair.image_path, "second", pair.label) for pair in pairs)]
    data = MultiCaptionCLIPDataset.from_pairs(doubled, processor, config())
    assert len(data) == len(pairs)
    assert {data[epoch, 0]["caption"] for epoch in range(30)} == {pairs[0].caption, "second"}
    assert data.pairs[0].label == pairs[0].label
    with pytest.raises(DataError, match="No caption for 1 image,"):
        MultiCaptionCLIPDataset({pairs[0].image_path: []}, processor, config())


def test_augment_text_shows_the_label_about_half_the_time(tiny_data, processor):
    settings = config(augment_text=True, prompt_templates=["a photo of a {}.", "{}"])
    data = CLIPDataset(tiny_data.pairs(), processor, settings)
    pair = tiny_data.pairs()[0]
    drawn = [data[epoch, 0]["caption"] for epoch in range(200)]
    assert set(drawn) == {pair.caption, f"a photo of a {pair.label}.", pair.label}
    assert 70 < drawn.count(pair.caption) < 130
    plain = CLIPDataset(tiny_data.pairs(), processor, config())
    assert {plain[epoch, 0]["caption"] for epoch in range(20)} == {pair.caption}


def test_views_differ_by_epoch_and_row_and_repeat(tiny_data, processor):
    settings = config()
    data, again = (CLIPDataset(tiny_data.pairs(), processor, settings, augmented(settings)) for _ in range(2))
    views = {(epoch, row): data.pixels((epoch, row)).clone() for epoch in range(3) for row in range(4)}
    assert len({pixels.numpy().tobytes() for pixels in views.values()}) == 12
    for key in reversed(views):
        assert torch.equal(again.pixels(key), views[key])
    other = CLIPDataset(tiny_data.pairs(), processor, config(seed=1), augmented(settings))
    assert not torch.equal(other.pixels((0, 0)), views[0, 0])


@pytest.mark.parametrize("augment", [False, True])
def test_cached_images_are_the_images(tiny_data, processor, augment):
    settings = config()
    transform = augmented(settings) if augment else None
    cached = CLIPDataset(tiny_data.pairs(), processor, settings, transform)
    plain = CLIPDataset(tiny_data.pairs(), processor, settings, transform, images=ImageStore(0))
    tight = CLIPDataset(tiny_data.pairs(), processor, config(image_cache_mb=0), transform)
    for epoch in range(3):
        for row in range(18):
            assert torch.equal(cached.pixels((epoch, row)), plain.pixels((epoch, row)))
            assert torch.equal(tight.pixels((epoch, row)), plain.pixels((epoch, row)))
    assert cached.images.decoded == 18
    assert plain.images.decoded == 2 * tight.images.decoded == 2 * 3 * 18
    assert plain.images.used == tight.images.used == 0


def test_a_cached_image_is_not_read_again(tiny_data, processor, monkeypatch):
    data = CLIPDataset(tiny_data.pairs(), processor, config())
    first = data[0]["pixel_values"]
    monkeypatch.setattr("domainclip.data.images.pipeline.read_array", lambda *_: pytest.fail("read again"))
    assert torch.equal(data[0]["pixel_values"], first)


def test_bad_image(tiny_data, processor, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8 no image")
    pairs = [*tiny_data.pairs()[:2], ImageTextPair(bad, "broken")]
    item = CLIPDataset(pairs, processor, config()).fetch((0, 2))
    assert item.pixels is None
    assert "bad.jpg" in item.problem
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        CLIPDataset(pairs, processor, config(strict=True)).fetch(2)
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        CLIPDataset(pairs, processor, config())[2]


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_image_that_a_worker_decoded_is_found_by_the_parent(tiny_data, processor, method):
    settings = config(num_workers=2)
    data = CLIPDataset(tiny_data.pairs(), processor, settings)
    plain = CLIPDataset(tiny_data.pairs(), processor, config(), images=ImageStore(0))
    assert data.images.used == 0
    loader = training_loader(data, settings, batch_size=6)
    loader = DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=2,
        multiprocessing_context=method,
    )
    rows = [row for batch in loader for row in batch["rows"]]
    assert sorted(rows) == list(range(18))
    assert data.images.used == 18 * 3 * 32 * 32
    for row in range(18):
        assert torch.equal(data.pixels(row), plain.pixels(row))
    assert data.images.decoded == 0
