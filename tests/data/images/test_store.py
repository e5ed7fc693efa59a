"""``ImageStore``: a file is decoded once, whoever asks; the bound holds."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainclip import CLIPFinetuningConfig
from domainclip.config.image_preprocessing import ImagePreprocessing
from domainclip.data.images import store as store_module
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import Preparation, model_views
from domainclip.data.images.store import ImageStore, SharedShelf
from domainclip.data.images.transforms import ImageTransform
from domainclip.errors import ImageError

VIEW = 3 * 16 * 16
"""Bytes of a prepared image of these tests."""


def views(resolution: int = 16, **steps: object) -> Preparation:
    return model_views(DomainImagePipeline(ImagePreprocessing(**steps)), ImageSpec().at(resolution))


def margin(config: CLIPFinetuningConfig | None = None, resolution: int = 16) -> Preparation:
    config = config or CLIPFinetuningConfig(image_resolution=resolution)
    return ImageTransform(config, augment=True, spec=ImageSpec().at(resolution)).preparation()


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    found = []
    for index in range(6):
        found.append(tmp_path / f"{index}.png")
        Image.fromarray(generator.integers(0, 256, (40, 30 + index, 3), dtype=np.uint8)).save(found[-1])
    return found


def test_a_file_is_decoded_once_for_all_forms_that_were_announced(paths: list[Path]) -> None:
    store = ImageStore(2**20)
    store.expect(paths, margin())
    store.expect(paths, views())
    for path in paths:
        store.get(path, views())
    assert store.decoded == 6
    for path in paths:
        assert torch.equal(store.get(path, margin())[0], ImageStore(0).get(path, margin())[0])
        assert torch.equal(store.get(path, views())[0], ImageStore(0).get(path, views())[0])
    assert store.decoded == 6
    assert store.refused == 0


def test_forms_asked_for_together_come_of_one_reading_without_any_memory(paths: list[Path]) -> None:
    store = ImageStore(0)
    first, second = store.get(paths[0], views(), margin())
    assert store.decoded == 1
    assert store.used == 0
    assert first.shape == (1, 3, 16, 16)
    assert torch.equal(second, ImageStore(0).get(paths[0], margin())[0])


def test_equal_preparations_of_two_makers_are_one(paths: list[Path]) -> None:
    config = CLIPFinetuningConfig(image_resolution=16)
    plain = ImageTransform(config, augment=False, spec=ImageSpec().at(16)).preparation()
    assert plain == views()
    assert views() != views(illumination="grey_world")
    assert views() != views(17)
    assert margin() != margin(CLIPFinetuningConfig(image_resolution=16, crop_scale=0.5))
    store = ImageStore(2**20)
    assert store.get(paths[0], plain)[0] is store.get(paths[0], views())[0]


def test_a_subclass_of_the_transform_shares_with_no_other(paths: list[Path]) -> None:
    class Inverted(ImageTransform):
        def base(self, image: np.ndarray) -> torch.Tensor:
            return 255 - super().base(image)

    config = CLIPFinetuningConfig(image_resolution=16)
    inverted = Inverted(config, augment=False, spec=ImageSpec().at(16)).preparation()
    store = ImageStore(2**20)
    first, second = store.get(paths[0], views(), inverted)
    assert torch.equal(first, 255 - second)


def test_forms_that_read_other_pixels_of_a_file_read_it_each(tmp_path: Path) -> None:
    pages = [Image.new("L", (20, 20), shade) for shade in (10, 200)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    store = ImageStore(2**20)
    first, mean = store.get(tmp_path / "pages.tif", views(), views(page="mean"))
    assert store.decoded == 2
    assert int(first[0, 0, 0, 0]) == 10
    assert int(mean[0, 0, 0, 0]) == 105


def test_only_large_images_are_read_anew_for_another_resolution(paths: list[Path], monkeypatch) -> None:
    store = ImageStore(0)
    store.get(paths[0], views(16), views(8))
    assert store.decoded == 1
    monkeypatch.setattr(store_module, "LARGE_IMAGE", 100)
    store.get(paths[0], views(16), views(8))
    assert store.decoded == 3


@pytest.mark.parametrize("shared", [False, True])
def test_the_bound_holds_and_what_does_not_fit_is_decoded_again(paths: list[Path], shared: bool) -> None:
    store = ImageStore(3 * VIEW + 7)
    store.expect(paths, views(), VIEW, shared)
    for _ in range(2):
        for path in paths:
            assert torch.equal(store.get(path, views())[0], ImageStore(0).get(path, views())[0])
    assert store.used == 3 * VIEW
    assert store.decoded == 6 + 3
    assert store.refused >= 1


def test_what_nobody_announced_takes_no_room_from_what_was(paths: list[Path]) -> None:
    store = ImageStore(4 * VIEW)
    store.expect(paths[:3], views(), VIEW)
    assert store.bytes_to_come() == 3 * VIEW
    for path in reversed(paths):
        store.get(path, views())
    assert store.used == 4 * VIEW
    decoded = store.decoded
    for path in [*paths[:3], paths[5]]:
        store.get(path, views())
    assert store.decoded == decoded
    assert store.bytes_to_come() == 0


def test_bytes_to_come_fall_as_images_come(paths: list[Path]) -> None:
    for shared in (False, True):
        store = ImageStore(2**20)
        store.expect(paths, views(), VIEW, shared)
        store.expect(paths, views(), VIEW, shared)  # said twice is meant once
        assert store.bytes_to_come() == 6 * VIEW
        store.get(paths[0], views())
        assert store.bytes_to_come() == 5 * VIEW
    assert ImageStore(0).bytes_to_come() == 0
    bounded = ImageStore(2 * VIEW)
    bounded.expect(paths, views(), None)  # of unknown size: all there is
    assert bounded.bytes_to_come() == 2 * VIEW


def test_a_bad_file_is_an_error_for_everybody(tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    store = ImageStore(2**20)
    with pytest.raises(ImageError, match=r"bad\.png"):
        store.get(bad, views())
    assert "bad.png" in store.problem(bad, views())
    assert store.used == 0


def test_threads_that_ask_at_once_read_a_file_once(paths: list[Path]) -> None:
    store = ImageStore(2**20)
    gate = threading.Barrier(8)
    found: list[torch.Tensor] = []

    def work() -> None:
        gate.wait()
        found.extend(store.get(path, views(), margin())[0] for path in paths)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 48
    assert store.decoded == 6


def test_a_copy_for_a_worker_keeps_nothing_of_its_own(paths: list[Path]) -> None:
    store = ImageStore(2**20)
    store.get(paths[0], views())
    copy = pickle.loads(pickle.dumps(store))
    assert torch.equal(copy.get(paths[0], views())[0], store.get(paths[0], views())[0])
    copy.get(paths[0], views())
    assert copy.used == 0
    assert copy.decoded == store.decoded + 2


# --- the shared memory itself ---


def image(seed: int, height: int = 5, width: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_shelf_keeps_its_bound() -> None:
    shelf = SharedShelf(10, 3 * 5 * 4 * 3 + 7)
    kept = [shelf.put(row, image(row)) for row in range(10)]
    assert kept == [True] * 3 + [False] * 7
    assert shelf.used == 180 <= shelf.capacity
    for row in range(10):
        found = shelf.get(row)
        assert found is None if row > 2 else torch.equal(found, image(row))


def test_shelf_keeps_images_of_unlike_shapes_and_the_first_of_a_row() -> None:
    shelf = SharedShelf(5, 10_000)
    shapes = [(5, 4), (1, 1), (7, 9), (2, 30)]
    for row in (2, 0, 3, 1):
        assert shelf.put(row, image(row, *shapes[row]))
    assert shelf.put(4, image(4)[None])
    assert shelf.put(1, image(99, 1, 1))
    for row, shape in enumerate(shapes):
        assert torch.equal(shelf.get(row), image(row, *shape))
    assert torch.equal(shelf.get(4), image(4)[None])


def test_shelf_takes_images_that_do_not_lie_in_order_in_memory() -> None:
    shelf = SharedShelf(1, 1000)
    assert shelf.put(0, image(0).flip(2).transpose(1, 2))
    assert torch.equal(shelf.get(0), image(0).flip(2).transpose(1, 2))


def test_shelf_under_many_threads() -> None:
    shelf = SharedShelf(200, 200 * 60 - 30)  # one too few
    wrong = []

    def work(offset: int) -> None:
        for step in range(200):
            row = (step * 7 + offset) % 200
            found = shelf.get(row)
            if found is None:
                shelf.put(row, image(row))
            elif not torch.equal(found, image(row)):
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(0, 200, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert shelf.used <= shelf.capacity
    assert all(torch.equal(shelf.get(row), image(row)) for row in range(200) if shelf.get(row) is not None)


def test_shelf_begins_empty_in_memory_that_another_gave_back() -> None:
    for seed in range(3):
        shelf = SharedShelf(4, 1000)
        assert shelf.used == 0
        assert [shelf.get(row) for row in range(4)] == [None] * 4
        for row in range(4):
            assert shelf.put(row, image(seed * 4 + row))
        del shelf
