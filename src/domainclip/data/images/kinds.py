"""What a file is that is no image as the reader takes it, by its first bytes and its name, and what can be done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

START = 1024
"""Bytes at a file's beginning that tell what it is."""


@dataclass(frozen=True)
class FileKind:
    """``name`` completes "this is …"; ``advice`` is what to do about it, a clause without a stop. ``decoder`` is what
    Pillow calls the format, where it may read it by a plug-in."""

    name: str
    advice: str
    decoder: str = ""

    @property
    def is_read(self) -> bool:
        """Whether Pillow reads the format here."""
        return self.decoder in Image.OPEN


def _video(name: str) -> FileKind:
    return FileKind(name, "take single images out of it, as by ffmpeg -i FILE -vf fps=1 %04d.png")


def _volume(name: str, library: str) -> FileKind:
    return FileKind(name, f"export its slices as PNG or TIFF (by {library}, for one)")


_HEIC = FileKind("a HEIC image", "pip install 'domainclip[heic]' reads it", "HEIF")
_AVIF = FileKind("an AVIF image", "a newer Pillow reads it: pip install -U pillow", "AVIF")
_JXL = FileKind("a JPEG XL image", "convert it, as by djxl FILE FILE.png", "JXL")
_RAW = FileKind("a camera's raw file", "develop it to TIFF, PNG or JPEG (by rawpy, darktable or the camera's program)")
_NPY = FileKind("a NumPy array", "save it as PNG or TIFF, or give it from Python as an array")
_SVG = FileKind("an SVG drawing", "render it to PNG")
_PDF = FileKind("a PDF document", "export its pages as images, as by pdftoppm -png FILE page")
_POINTER = FileKind("a Git LFS pointer, not the file itself", "fetch the files by git lfs pull")
_HTML = FileKind("an HTML page, as servers send in place of a file", "download the file again")
_TEXT = FileKind("a text file", "it holds no image")
_SLIDE = FileKind("a whole-slide image", "cut it into tiles (by OpenSlide or tiatoolbox, for one)")
_MICROSCOPE = FileKind("a microscope's own format", "export it as OME-TIFF (by Bio-Formats or Fiji, for one)")
_FITS = FileKind("a FITS file", "export its images as TIFF (by astropy, for one)")
_ARCHIVE = FileKind("an archive", "unpack it")
_HDF5 = FileKind("an HDF5 file", "export its arrays as PNG or TIFF (by h5py, for one)")
_MATLAB = FileKind("a MATLAB file", "export its arrays as PNG or TIFF (by scipy.io.loadmat, for one)")
_NIFTI = _volume("a NIfTI volume", "nibabel")
_MP4 = _video("a video")
_EXR = FileKind("an OpenEXR image", "convert it to TIFF")
_POSTSCRIPT = FileKind("a PostScript file", "render it to PNG")
_SHORTCUT = FileKind("a Windows shortcut", "copy the file itself")

_BY_START: tuple[tuple[bytes, FileKind], ...] = (
    (b"\xff\x0a", _JXL),
    (b"\x00\x00\x00\x0cJXL ", _JXL),
    (b"\x93NUMPY", _NPY),
    (b"%PDF-", _PDF),
    (b"version https://git-lfs", _POINTER),
    (b"\x1a\x45\xdf\xa3", _MP4),
    (b"\x00\x00\x01\xba", _MP4),
    (b"\x00\x00\x01\xb3", _MP4),
    (b"FUJIFILMCCD-RAW", _RAW),
    (b"IIRO", _RAW),
    (b"IIRS", _RAW),
    (b"IIU\x00", _RAW),
    (b"FOVb", _RAW),
    (b"\x89HDF\r\n", _HDF5),
    (b"MATLAB 5.0", _MATLAB),
    (b"ZISRAWFILE", _MICROSCOPE),
    (b"\xda\xce\xbe\x0a", _MICROSCOPE),
    (b"PK\x03\x04", _ARCHIVE),
    (b"\x1f\x8b", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"Rar!", _ARCHIVE),
    (b"\xfd7zXZ", _ARCHIVE),
    (b"BZh", _ARCHIVE),
    (b"\x28\xb5\x2f\xfd", _ARCHIVE),
    (b"NRRD", _volume("an NRRD volume", "SimpleITK")),
    (b"ObjectType", _volume("a MetaImage volume", "SimpleITK")),
    (b"SIMPLE  =", _FITS),
    (b"\x76\x2f\x31\x01", _EXR),
    (b"%!PS", _POSTSCRIPT),
    (b"\xc5\xd0\xd3\xc6", _POSTSCRIPT),
    (b"L\x00\x00\x00\x01\x14\x02\x00", _SHORTCUT),
)
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"heif"), _HEIC),
    **dict.fromkeys((b"avif", b"avis"), _AVIF),
    b"crx ": _RAW,
}
"""Of the ISO base media format (ISO/IEC 14496-12, ``ftyp``); all others are videos."""

_BY_SUFFIX: dict[str, FileKind] = {
    **dict.fromkeys((".heic", ".heif", ".hif"), _HEIC),
    ".avif": _AVIF,
    ".jxl": _JXL,
    **dict.fromkeys((".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".raf", ".orf"), _RAW),
    **dict.fromkeys((".rw2", ".pef", ".srw", ".3fr", ".iiq", ".x3f", ".kdc", ".dcr", ".mrw", ".erf", ".raw"), _RAW),
    **dict.fromkeys((".nii", ".nii.gz"), _NIFTI),
    **dict.fromkeys((".nrrd", ".nhdr"), _volume("an NRRD volume", "SimpleITK")),
    **dict.fromkeys((".mha", ".mhd"), _volume("a MetaImage volume", "SimpleITK")),
    **dict.fromkeys((".npy", ".npz"), _NPY),
    **dict.fromkeys((".svg", ".svgz"), _SVG),
    ".pdf": _PDF,
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".wmv", ".mpg", ".mpeg", ".mts"), _MP4),
    **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu"), _SLIDE),
    **dict.fromkeys((".czi", ".lif", ".nd2", ".oib", ".oif", ".vsi", ".lsm", ".ims"), _MICROSCOPE),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), _HDF5),
    ".mat": _MATLAB,
    **dict.fromkeys((".fits", ".fit"), _FITS),
    ".exr": _EXR,
    **dict.fromkeys((".eps", ".ps", ".ai"), _POSTSCRIPT),
    ".lnk": _SHORTCUT,
}
_PREVIEWED = (_RAW, _SLIDE, _MICROSCOPE, _POSTSCRIPT)
"""Of these a decoder would give a preview or a label for the image, or run another program."""
_SOMETIMES_READ = (_HEIC, _AVIF, _JXL, _FITS, _TEXT)
"""Pillow reads these with a plug-in, or some of them (an image in the PPM format may be written in letters)."""

_IMAGES: tuple[bytes, ...] = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_IMAGES += (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")

_MARKUP = re.compile(rb"\s*(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*|<!doctype\s+[^>]*>\s*)*<(\w+)", re.IGNORECASE | re.DOTALL)


def is_image_start(start: bytes) -> bool:
    """Whether a file of any name begins as an image does that the reader takes.

    Args:
        start: Its first ``START`` bytes.

    Returns:
        Whether it is JPEG, PNG, GIF, TIFF, JPEG 2000, WebP, BMP or DICOM.
    """
    if start.startswith(_IMAGES) or start[128:132] == b"DICM":
        return start[8:10] != b"CR"  # Canon's raw files begin as TIFF
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return True
    return start[:2] == b"BM" and start[6:10] == b"\x00\x00\x00\x00"


def kind_of(start: bytes, path: Path) -> FileKind | None:
    """What a file is that the reader does not take.

    Args:
        start: Its first ``START`` bytes.
        path: Its name, which decides where the bytes do not.

    Returns:
        The kind; None for one that is not known, which may be an image.
    """
    name = path.name.lower()
    suffix = ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()
    by_suffix = _BY_SUFFIX.get(suffix)
    if is_image_start(start):
        return by_suffix if by_suffix in _PREVIEWED else None
    if suffix == ".nii.gz" or start[344:348] in {b"n+1\x00", b"ni1\x00"}:
        return _NIFTI
    if start[8:10] == b"CR" and start[:4] == b"II*\x00":
        return _RAW
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], _MP4)
    if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        return _MP4
    found = next((kind for signature, kind in _BY_START if start.startswith(signature)), None)
    return found or _written(start) or by_suffix


def _written(start: bytes) -> FileKind | None:
    """A kind of text, told by its beginning."""
    text = start.removeprefix(b"\xef\xbb\xbf")
    if markup := _MARKUP.match(text):
        element = markup[1].lower()
        if element == b"svg":
            return _SVG
        return _HTML if element in {b"html", b"head", b"body", b"div", b"script"} or b"<html" in text.lower() else _TEXT
    if text and not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", text):
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return _TEXT if len(text) == START and error.start > START - 4 else None
        return _TEXT
    return None


def is_never_read(kind: FileKind | None) -> bool:
    """Whether no file of a kind is to be decoded, whatever a decoder makes of it.

    Args:
        kind: From ``kind_of``.

    Returns:
        True for all that no decoder reads, and for raw files, whole slides and the like, of which they give a preview.
    """
    return kind is not None and kind not in _SOMETIMES_READ
