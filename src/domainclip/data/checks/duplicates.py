"""Near duplicates: the same image stored again at another size, quality or format.

An image is shrunk to 18×16 grey levels. Its difference hash (dHash: is each of 8×8 cells darker than its
right neighbour?) finds candidates, and the mean difference of the 18×16 grey levels confirms them. The hash
alone is not enough in specialised domains: of 500 chest X-rays 845 pairs have hashes within 7 bits, 4 of them
are near duplicates; and flat images of any brightness hash to 0.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_DISTANCE = 7
"""Most differing bits of 64. Shrunk to 60 % and saved at JPEG quality 70, 90 % of X-rays, photographs and
microscope images stay within it."""

GREY_DISTANCE = 2.5
"""Most mean absolute difference of the small images, in grey levels of 255 (the copies above: median 1 to
3)."""

FINGERPRINT_SHAPE = (16, 18)
_BANDS, _BAND_BITS = 4, 16


def fingerprint(image: np.ndarray) -> np.ndarray:
    """Shrink an image to its mean grey levels.

    Args:
        image: uint8 ``[height, width, 3]``.

    Returns:
        uint8 ``[16, 18]``, 0 to 255.
    """
    height, width = FINGERPRINT_SHAPE
    grey = Image.fromarray(image).convert("L")
    return np.asarray(grey.resize((width, height), Image.Resampling.BOX))


def difference_hashes(fingerprints: np.ndarray) -> np.ndarray:
    """Tell of each of 8×8 cells whether it is darker than its right neighbour (dHash).

    Args:
        fingerprints: uint8 ``[n, 16, 18]``.

    Returns:
        uint64 ``[n]``, one bit a cell.
    """
    n = len(fingerprints)
    cells = fingerprints.reshape(n, 8, 2, 9, 2).sum(axis=(2, 4), dtype=np.int32)
    bits = np.packbits((cells[:, :, 1:] > cells[:, :, :-1]).reshape(n, 64), axis=1)
    return bits.view(np.uint64).ravel()


def near_duplicate_groups(fingerprints: np.ndarray) -> list[list[int]]:
    """Find near duplicates: at most ``HASH_DISTANCE`` bits and ``GREY_DISTANCE`` grey levels apart.

    Of two hashes that differ in at most 7 bits, at least one of the 4 bands of 16 bits differs in at most one
    bit, so only images with such a band are compared (100,000 images: seconds). Groups are closed under
    "near": a chain of near images is one group.

    Args:
        fingerprints: uint8 ``[n, 16, 18]``.

    Returns:
        Groups of two or more indices, ascending.
    """
    if len(fingerprints) < 2:
        return []
    # Equal small images (blank ones, above all) first: one stands for all.
    flat = fingerprints.reshape(len(fingerprints), -1)
    index_of: dict[bytes, int] = {}
    member_of = [index_of.setdefault(row.tobytes(), len(index_of)) for row in flat]
    unique = np.frombuffer(b"".join(index_of), np.uint8).reshape(len(index_of), -1)
    root = _link(difference_hashes(unique.reshape(-1, *FINGERPRINT_SHAPE)), unique.astype(np.int16))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(member_of):
        groups[int(root[place])].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _link(hashes: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """``[n]``: the same number for all images of one group."""
    root = np.arange(len(hashes))
    for band in range(_BANDS):
        values = ((hashes >> np.uint64(_BAND_BITS * band)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        order = np.argsort(values, kind="stable")
        values = values[order]
        for flipped in [0, *(1 << bit for bit in range(_BAND_BITS))]:
            # Each pair once: equal bands from the earlier to the later, others from the one without the bit.
            left = np.arange(len(order)) if flipped == 0 else np.flatnonzero((values & flipped) == 0)
            sought = values[left] | flipped
            right = left + 1 if flipped == 0 else np.searchsorted(values, sought, "left")
            end = np.searchsorted(values, sought, "right")
            while True:
                kept = right < end
                left, right, end = left[kept], right[kept], end[kept]
                if not len(left):
                    break
                _link_pairs(order[left], order[right], hashes, grey, root)
                right = right + 1
    return root


def _link_pairs(a: np.ndarray, b: np.ndarray, hashes: np.ndarray, grey: np.ndarray, root: np.ndarray) -> None:
    """Join the groups of ``a[i]`` and ``b[i]`` where the two are near; cheap tests first."""
    for near in (
        lambda a, b: root[a] != root[b],
        lambda a, b: _bit_count(hashes[a] ^ hashes[b]) <= HASH_DISTANCE,
        lambda a, b: np.abs(grey[a] - grey[b]).mean(axis=1) <= GREY_DISTANCE,
    ):
        kept = near(a, b)
        a, b = a[kept], b[kept]
        if not len(a):
            return
    joined = coo_array((np.ones(len(a), dtype=bool), (root[a], root[b])), shape=(len(root), len(root)))
    root[:] = connected_components(joined, directed=False)[1][root]


def _bit_count(values: np.ndarray) -> np.ndarray:
    """Set bits of each uint64, by adding neighbouring fields (numpy has its own from 2.0, this works in
    1.26)."""
    values = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    values = (values & np.uint64(0x3333333333333333)) + ((values >> np.uint64(2)) & np.uint64(0x3333333333333333))
    values = (values + (values >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
