"""Converted graphs give float32's embeddings for every kind of model, in every shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from domainclip.data.images.image_spec import ImageSpec
from domainclip.inference.backends.encoder import BACKENDS
from domainclip.inference.backends.golden import MINIMUM_COSINE, drawn_images, least_cosine
from domainclip.inference.backends.names import in_order
from domainclip.inference.backends.shapes import FixedShapes
from domainclip.inference.backends.torch_encoder import fixed_shapes, towers_of
from domainclip.models import DualEncoder

CPU = torch.device("cpu")
KINDS = ("clip", "siglip", "vision_text")


def needs(name: str) -> None:
    if (package := BACKENDS[name].missing()) is not None:
        pytest.skip(f"{package} is not installed (domainclip[{BACKENDS[name].extra}])")


def token_rows(shapes: FixedShapes, vocabulary: int) -> list[list[int]]:
    """Texts of every length up to the longest, the end token last."""
    random = np.random.default_rng(0)
    return [
        [0, *random.integers(2, vocabulary, length - 2).tolist(), 1] for length in range(3, shapes.lengths[-1] + 1, 4)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", in_order())
def test_a_graph_agrees_with_torch_in_every_shape(
    name: str, kind: str, build: Callable[[str], DualEncoder], tmp_path: Path
) -> None:
    needs(name)
    encoder = build(kind)
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    expected = fixed_shapes(encoder, spec, CPU)
    BACKENDS[name].convert(towers_of(encoder, spec), tmp_path, "fp32")
    images, ids = drawn_images(63, spec.resolution, 3), token_rows(expected, 30)
    for precision in BACKENDS[name].precisions():
        found = FixedShapes(BACKENDS[name].load(tmp_path, precision), expected.lengths, expected.pad_token_id)
        assert (found.encoder.name, found.encoder.precision) == (name, precision)
        for rows in (images, images[:5], images[:1]):
            assert least_cosine(found.encode_images(rows), expected.encode_images(rows)) > MINIMUM_COSINE[precision]
        for texts in (ids, ids[:3], ids[-1:]):
            assert least_cosine(found.encode_tokens(texts), expected.encode_tokens(texts)) > MINIMUM_COSINE[precision]
        if precision == "fp32":
            np.testing.assert_allclose(found.encode_images(images), expected.encode_images(images), atol=2e-5)


@pytest.mark.parametrize("name", in_order())
def test_a_graph_gives_the_same_bits_whatever_rides_along(
    name: str, build: Callable[[str], DualEncoder], tmp_path: Path
) -> None:
    needs(name)
    encoder = build("clip")
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    BACKENDS[name].convert(towers_of(encoder, spec), tmp_path, "fp32")
    images = drawn_images(8, spec.resolution, 4)
    for precision in BACKENDS[name].precisions():
        found = FixedShapes(BACKENDS[name].load(tmp_path, precision), (16, 77), encoder.processor.pad_token_id)
        whole, order = found.encode_images(images), np.random.default_rng(0).permutation(8)
        assert np.array_equal(found.encode_images(images[order]), whole[order])


def test_int8_is_near_float32(build: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    """On other images than those it was calibrated by."""
    needs("openvino")
    pytest.importorskip("nncf", reason="nncf is not installed (domainclip[openvino])")
    encoder = build("clip")
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    expected = fixed_shapes(encoder, spec, CPU)
    BACKENDS["openvino"].convert(towers_of(encoder, spec), tmp_path, "int8")
    found = FixedShapes(BACKENDS["openvino"].load(tmp_path, "int8"), expected.lengths, expected.pad_token_id)
    images = drawn_images(8, spec.resolution, 5)
    ids = encoder.processor.token_ids(["a photo of the red grass", "brick", "Small, dark and without texture. " * 5])
    assert least_cosine(found.encode_images(images), expected.encode_images(images)) > 0.98
    assert least_cosine(found.encode_tokens(ids), expected.encode_tokens(ids)) > 0.98


def test_a_text_tower_that_loses_by_it_has_only_its_weights_in_int8(
    build: Callable[[str], DualEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("openvino")
    pytest.importorskip("nncf", reason="nncf is not installed (domainclip[openvino])")
    monkeypatch.setattr("domainclip.inference.backends.openvino_graphs._TEXT_COSINE", 2.0)
    encoder = build("clip")
    spec = ImageSpec.from_processor(encoder.processor.image_processor)
    expected = fixed_shapes(encoder, spec, CPU)
    BACKENDS["openvino"].convert(towers_of(encoder, spec), tmp_path, "int8")
    found = FixedShapes(BACKENDS["openvino"].load(tmp_path, "int8"), expected.lengths, expected.pad_token_id)
    ids = token_rows(expected, 100)
    assert least_cosine(found.encode_tokens(ids), expected.encode_tokens(ids)) > 0.999


def test_openvino_does_not_report_home() -> None:
    """Its package for that would send a message at the import alone."""
    needs("openvino")
    import subprocess
    import sys

    check = (
        "from domainclip.inference.backends.openvino_graphs import load_openvino\n"
        "import sys; load_openvino(); print([name for name in sys.modules if name.startswith('openvino_telemetry')],"
        " sys.modules['openvino_telemetry'], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['openvino_telemetry'] None False"
    assert not logging.root.manager.disable
