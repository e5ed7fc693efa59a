"""Files that are made to fill memory or time are refused for what a small image takes."""

from __future__ import annotations

import io
import json
import sys
import zlib

import pytest
from PIL import Image

from domainclip.service.images import ImageInputError, ImageLimits, check_header
from forked import run_python
from hostile_images import HOSTILE, chunk, gif, jpeg, png, tiff, zeros

LIMITS = ImageLimits()

MEASURE = """
import gc, json, resource, sys, time
from domainclip.data.images.image_spec import ImageSpec
from domainclip.data.images.pipeline import DomainImagePipeline
from domainclip.data.images.preparation import model_views
from domainclip.service.images import ImageInputError, ImageLimits, decoded
from hostile_images import HOSTILE, dicom, png
import tifffile

preparation, limits = model_views(DomainImagePipeline(), ImageSpec()), ImageLimits()
for content in (png(16, 16), dicom()):
    decoded(content, preparation, limits)
unit = 1 if sys.platform == "darwin" else 1024
found = {}
for name, make in HOSTILE.items():
    content = make()
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        decoded(content, preparation, limits)
        code = "decoded"
    except ImageInputError as error:
        code = error.code
    seconds = time.process_time() - begin
    found[name] = (code, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit)
    del content
    gc.collect()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[str, float, int]]:
    if sys.platform == "win32":
        pytest.skip("memory is measured on POSIX alone")
    done = run_python(MEASURE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_in_little_memory_and_time(measured: dict[str, tuple[str, float, int]], name: str) -> None:
    code, seconds, memory = measured[name]
    assert code in {"too_many_pixels", "damaged_image"}
    assert seconds < 1
    assert memory < 300 * 2**20


def test_parts_that_files_have_are_no_reason() -> None:
    text = chunk(b"tEXt", b"Comment\0" + bytes(range(32, 127)))
    assert check_header(png(16, 16, text * 1000), LIMITS).width == 16
    assert check_header(gif(b"\x21\xfe\1x\0" * 1000), LIMITS).width == 1
    assert check_header(jpeg(b"\xff\xe5\0\2" * 500), LIMITS).width == 16


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("png of many chunks", "chunks"),
        ("png with many profiles", "profile"),
        ("tiff of many pages", "entries"),
        ("tiff of the same strips", "same bytes"),
        ("gif of many comments", "before its first frame"),
        ("jpeg of many segments", "segments"),
        ("jpeg of many scans", "scans"),
        ("dicom of many items", "elements"),
    ],
)
def test_messages_say_what_there_is_too_much_of(name: str, said: str) -> None:
    with pytest.raises(ImageInputError, match=said):
        check_header(HOSTILE[name](), LIMITS)


def test_bombs_are_what_they_say() -> None:
    assert zlib.decompress(zeros(3)) == bytes(3 * 2**20)
    assert decoded_size(tiff(16, 16, zlib.compress(bytes(range(256))))) == (16, 16)


def decoded_size(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        return image.size
