"""What callers in Python bring in other forms is the same image, or an error that says what to give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from domainclip import ModelSession


@pytest.fixture(scope="module")
def tiny_session() -> ModelSession:
    return ModelSession.from_pretrained("tiny")


def _picture() -> np.ndarray:
    ramp = np.add.outer(np.arange(40), np.arange(40)).astype(np.uint8)
    return np.stack([ramp, ramp[::-1], 90 - ramp], axis=2)


@pytest.mark.parametrize("grey", [False, True], ids=["colours", "grey"])
@pytest.mark.parametrize(
    "given",
    [
        lambda levels: levels.astype(np.float32),
        lambda levels: levels.astype(np.int64),
        lambda levels: levels.astype(np.int32),
        lambda levels: levels / 255.0,
        lambda levels: np.array([levels], dtype=np.int64)[0],
        lambda levels: torch.from_numpy(levels.astype(np.float32)),
        lambda levels: torch.from_numpy(levels.astype(np.int64)),
    ],
    ids=["float32", "int64", "int32", "fractions", "copy", "tensor", "tensor of int64"],
)
def test_bytes_in_a_wider_type_are_the_same_image(given, grey, tiny_session) -> None:
    levels = _picture()[..., 0] if grey else _picture()
    wanted = tiny_session.encode_images(levels)
    assert torch.allclose(tiny_session.encode_images(given(levels)), wanted, atol=1e-6)


def test_fractions_that_overshoot_are_fractions(tiny_session) -> None:
    fractions = _picture() / 90.0
    wanted = tiny_session.encode_images(fractions.clip(0, 1))
    assert torch.allclose(tiny_session.encode_images(np.where(fractions == 1, 1.04, fractions)), wanted, atol=1e-6)


def test_arrays_of_paths_are_paths_and_what_has_no_order_is_refused(tmp_path, tiny_session) -> None:
    import pandas as pd

    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for n, path in enumerate(paths):
        Image.fromarray(np.roll(_picture(), 7 * n, axis=0)).save(path)
    wanted = tiny_session.encode_images(paths)
    for given in (np.array(paths), np.array(paths, dtype=object), pd.Series(paths, index=[4, 9, 2])):
        assert torch.equal(tiny_session.encode_images(given), wanted)
    with pytest.raises(TypeError, match="a set, which has no order: give a list"):
        tiny_session.encode_images(set(paths))
    with pytest.raises(TypeError, match="a set, which has no order: give a list"):
        tiny_session.encode_texts({"a", "b"})
    with pytest.raises(TypeError, match=r"give one column of it"):
        tiny_session.encode_images(pd.DataFrame({"path": paths}))
    with pytest.raises(TypeError, match=r"give one column of it"):
        tiny_session.encode_texts(pd.DataFrame({"caption": ["a", "b"]}))
    with pytest.raises(ValueError, match="Text 1 holds half of a character"):
        tiny_session.encode_texts(["a", "b\ud800"])


def test_a_session_can_be_pickled_and_heeds_no_autocast_around_it(tiny_session) -> None:
    import pickle

    wanted = tiny_session.encode_images(_picture())
    assert torch.equal(pickle.loads(pickle.dumps(tiny_session)).encode_images(_picture()), wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tiny_session.encode_images(_picture()), wanted)
        texts = tiny_session.encode_texts(["a red disc"])
    assert torch.equal(tiny_session.encode_texts(["a red disc"]), texts)
