"""DICOM: where a frame's rescaling and window stand, what devices leave empty, files of 8 and of 12 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domain_image_cases import RNG, linear_window, settings, write_dicom
from domainclip.data.images.dicom import Window
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.reader import image_header, read_array, read_image
from domainclip.errors import ImageError

pydicom = pytest.importorskip("pydicom")
STORED = np.linspace(24, 2024, 64).astype(np.uint16).reshape(8, 8)
FRAMES = np.stack([STORED, STORED + 100, STORED + 200])
HU = {"RescaleSlope": "1", "RescaleIntercept": "-1024"}


def item(**values: Any) -> Any:
    made = pydicom.Dataset()
    for name, value in values.items():
        setattr(made, name, value)
    return made


def groups(rescale: dict[str, Any], window: dict[str, Any] | None = None) -> Any:
    made = item(PixelValueTransformationSequence=[item(**rescale)])
    if window is not None:
        made.FrameVOILUTSequence = [item(**window)]
    return made


SHARED = {"SharedFunctionalGroupsSequence": [groups(HU, {"WindowCenter": "40", "WindowWidth": "400"})]}
PER_FRAME = {
    "SharedFunctionalGroupsSequence": [item(FrameVOILUTSequence=[item(WindowCenter="1", WindowWidth="2")])],
    "PerFrameFunctionalGroupsSequence": [
        groups({"RescaleSlope": slope, "RescaleIntercept": "-1024"}, {"WindowCenter": center, "WindowWidth": "400"})
        for slope, center in ((1, 40), (2, 300), (3, 5))
    ],
}


@pytest.mark.parametrize(
    ("tags", "page", "rescaled", "center"),
    [
        (SHARED, "first", STORED - 1024.0, 40),
        (SHARED, "middle", STORED + 100 - 1024.0, 40),
        (SHARED, "mean", STORED + 100 - 1024.0, 40),
        (PER_FRAME, "middle", (STORED + 100) * 2 - 1024.0, 300),
        (PER_FRAME, "mean", (STORED + (STORED + 100.0) * 2 + (STORED + 200.0) * 3) / 3 - 1024, 40),
    ],
)
def test_enhanced_files_rescale_and_window_in_functional_groups(
    tmp_path: Path, tags: dict[str, Any], page: Any, rescaled: np.ndarray, center: float
) -> None:
    path = write_dicom(tmp_path / "enhanced.dcm", FRAMES, **tags)
    got = read_array(path, settings=settings(page=page))
    assert np.abs(got - linear_window(rescaled, center, 400) * 255).max() <= 0.5001
    lung = read_array(path, settings=settings(page=page, window_center=-600, window_width=1500))
    assert np.abs(lung - linear_window(rescaled, -600, 1500) * 255).max() <= 0.5001
    off = read_array(path, settings=settings(page=page, dicom_window="off"))
    assert np.allclose(off, rescaled, rtol=1e-5)


def test_a_table_in_functional_groups(tmp_path: Path) -> None:
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [4096, 0, 16])
    table.add_new("LUTData", "OW", (65535 - 16 * np.arange(4096, dtype=np.uint16)).tobytes())
    shared = item(FrameVOILUTSequence=[item(VOILUTSequence=[table])])
    path = write_dicom(tmp_path / "x.dcm", FRAMES, SharedFunctionalGroupsSequence=[shared])
    assert np.abs(read_array(path) - (65535 - 16.0 * STORED) / 65535 * 255).max() <= 0.5001


@pytest.mark.parametrize(
    ("tags", "want"),
    [
        ({**HU, "WindowCenter": None, "WindowWidth": None}, STORED - 1024.0),
        ({**HU, "WindowCenter": "0", "WindowWidth": "0"}, STORED - 1024.0),
        ({**HU, "WindowCenter": "5", "WindowWidth": None}, STORED - 1024.0),
        ({"RescaleSlope": None, "RescaleIntercept": None}, STORED.astype(float)),
        ({"RescaleSlope": "2", "RescaleIntercept": None}, STORED * 2.0),
        ({"PixelPaddingValue": None, "VOILUTSequence": [], "ModalityLUTSequence": []}, STORED.astype(float)),
    ],
)
def test_what_is_empty_says_nothing(tmp_path: Path, tags: dict[str, Any], want: np.ndarray) -> None:
    got = read_array(write_dicom(tmp_path / "x.dcm", STORED, **tags))
    assert got.dtype == np.float32 and np.allclose(got, want)


@pytest.mark.parametrize("empty", [{"RescaleSlope": None, "RescaleIntercept": None}, {"VOILUTSequence": []}])
def test_a_window_beside_empty_elements_counts(tmp_path: Path, empty: dict[str, Any]) -> None:
    path = write_dicom(tmp_path / "x.dcm", STORED, WindowCenter=["1040", "7"], WindowWidth=["400", "9"], **empty)
    assert np.abs(read_array(path) - linear_window(STORED, 1040, 400) * 255).max() <= 0.5001


def test_fractions_have_windows_too(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64).reshape(8, 8).astype(np.float32)
    path = write_dicom(tmp_path / "x.dcm", values, WindowCenter="0.5", WindowWidth="1.5")
    assert np.abs(read_array(path) - linear_window(values, 0.5, 1.5) * 255).max() <= 0.5001


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("width", [1, 2, 300.5])
def test_windows_are_those_of_pydicom(function: str, width: float) -> None:
    from pydicom.pixels import apply_windowing

    dataset = item(PhotometricInterpretation="MONOCHROME2", BitsStored=12, PixelRepresentation=0)
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = 1000, width, function
    values = np.arange(4096)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        want = apply_windowing(values, dataset) / 4095
    assert np.abs(Window(1000, width, function).shown(values) - want).max() < 1e-6


IDENTITY = {"RescaleSlope": "1", "RescaleIntercept": "0"}


@pytest.mark.parametrize(
    ("dtype", "bits", "tags"), [(np.uint8, 8, {}), (np.uint8, 8, IDENTITY), (np.uint8, 6, {}), (np.uint16, 8, {})]
)
@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_8_bits_without_a_window_are_shown_as_they_are(
    tmp_path: Path, dtype: Any, bits: int, tags: dict[str, Any], photometric: str
) -> None:
    top = 2**bits - 1
    values = np.linspace(0.4 * top, 0.6 * top, 64).astype(dtype).reshape(8, 8)
    path = write_dicom(tmp_path / "us.dcm", values, photometric, BitsStored=bits, HighBit=bits - 1, **tags)
    want = np.round((values if photometric == "MONOCHROME2" else top - values) * (255 / top))
    got = read_array(path)
    assert got.dtype == np.uint8 and np.array_equal(got, want)
    assert np.array_equal(DomainImagePipeline(settings(deep_scaling="percentiles")).apply(got)[..., 0], want)


def test_8_bits_with_a_unit_are_no_brightness(tmp_path: Path) -> None:
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    got = read_array(write_dicom(tmp_path / "pet.dcm", values, RescaleSlope="0.5", RescaleIntercept="0"))
    assert got.dtype == np.float32 and np.allclose(got, values * 0.5)


def test_colours_of_12_bits_are_scaled_by_12(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 4096, (6, 7, 3), dtype=np.uint16)
    path = write_dicom(tmp_path / "rgb.dcm", rgb, "RGB", BitsStored=12, HighBit=11)
    assert np.abs(read_array(path) - rgb * (65535 / 4095)).max() <= 0.5001
    assert np.abs(read_image(path) - rgb * (255 / 4095)).max() <= 0.51


def test_palettes_are_looked_up_before_a_mean(tmp_path: Path) -> None:
    tags: dict[str, Any] = {}
    for name, column in (("Red", [0, 65535, 0]), ("Green", [0, 0, 0]), ("Blue", [0, 0, 65535])):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [3, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = np.array(column, np.uint16).tobytes()
    frames = np.stack([np.zeros((4, 4), np.uint8), np.full((4, 4), 2, np.uint8)])
    path = write_dicom(tmp_path / "p.dcm", frames, "PALETTE COLOR", **tags)
    assert (read_array(path, settings=settings(page="mean")) == [0, 0, 128]).all()


def test_a_file_without_its_preamble_is_said_to_be_one(tmp_path: Path) -> None:
    whole = write_dicom(tmp_path / "x.dcm", STORED).read_bytes()
    for name, hint in (("bare.dcm", True), ("bare.DICOM", True), ("bare.bin", False)):
        (tmp_path / name).write_bytes(whole[132:])
        for function in (read_image, image_header):
            with pytest.raises(ImageError, match="not an image") as caught:
                function(tmp_path / name)
            assert ("DICOM without the preamble" in str(caught.value)) == hint
    pydicom.dcmread(tmp_path / "bare.dcm", force=True).save_as(tmp_path / "anew.dcm", enforce_file_format=True)
    assert np.array_equal(read_image(tmp_path / "anew.dcm"), read_image(tmp_path / "x.dcm"))
