"""Near duplicates: the same image stored again at another size, quality or format.

An image is shrunk to 18×16 grey levels. Its difference hash (dHash: is each of 8×8 cells darker than its
right neighbour?) finds candidates, and the mean and the greatest difference of the 18×16 grey levels confirm them. The
hash alone is not enough in specialised domains: of 500 chest X-rays 845 pairs have hashes within 7 bits, 4 of them
are near duplicates; and flat images of any brightness hash to 0. Nor is the mean: of 1,920 cut-outs of circuit boards
154 were alike that show other defects of other boards, at one place each.
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

CELL_DISTANCE = 30
"""Most difference of one cell of the small images. Of the copies above 1 in 100 has more; of images that differ in one
thing (a defect, a tube) few have less."""

_NEIGHBOURS = 50
"""An image is compared with so many at most of those that share a band, the nearest in brightness: what is filmed by a
fixed camera shares all its bands, and each with each would be 45 billion comparisons for 300,000 frames."""

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
    """Find near duplicates: at most ``HASH_DISTANCE`` bits, ``GREY_DISTANCE`` grey levels in the mean and
    ``CELL_DISTANCE`` in any cell apart.

    Of two hashes that differ in at most 7 bits, at least one of the 4 bands of 16 bits differs in at most one
    bit, so only images with such a band are compared, and of these the nearest in brightness: the time grows with the
    number of images, not with its square. Groups are closed under "near": a chain of near images is one group.

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
    root = _link(difference_hashes(unique.reshape(-1, *FINGERPRINT_SHAPE)), unique)
    groups: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(member_of):
        groups[int(root[place])].append(index)
    return [group for group in groups.values() if len(group) > 1]


def _link(hashes: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """``[n]``: the same number for all images of one group."""
    root = np.arange(len(hashes))
    # In 1/16 of a grey level, below 4096: the second part of the key by which images lie in order.
    brightness = np.rint(grey.mean(axis=1, dtype=np.float64) * 16).astype(np.int64)
    reach = int(GREY_DISTANCE * 16) + 1
    for band in range(_BANDS):
        values = ((hashes >> np.uint64(_BAND_BITS * band)) & np.uint64((1 << _BAND_BITS) - 1)).astype(np.int64)
        keys = (values << 12) + brightness
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        for flipped in [0, *(1 << bit for bit in range(_BAND_BITS))]:
            # Each pair once: equal bands from the earlier to the later, others from the one without the bit.
            left = np.arange(len(order)) if flipped == 0 else np.flatnonzero((values & flipped) == 0)
            sought = keys[left] + (flipped << 12)
            end = np.minimum(np.searchsorted(keys, sought + reach, "right"), _end_of(keys, sought))
            if flipped == 0:
                right = left + 1
                end = np.minimum(end, right + _NEIGHBOURS)
            else:
                middle = np.searchsorted(keys, sought)
                right = np.maximum(np.searchsorted(keys, sought - reach), np.searchsorted(keys, (sought >> 12) << 12))
                right = np.maximum(right, middle - _NEIGHBOURS // 2)
                end = np.minimum(end, middle + _NEIGHBOURS // 2)
            _link_spans(order, left, right, end, hashes, grey, root)
    return root


def _end_of(keys: np.ndarray, sought: np.ndarray) -> np.ndarray:
    """Where the images with the band of ``sought`` end."""
    return np.searchsorted(keys, ((sought >> 12) + 1) << 12)


def _link_spans(
    order: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    end: np.ndarray,
    hashes: np.ndarray,
    grey: np.ndarray,
    root: np.ndarray,
) -> None:
    """Join the groups of near images among ``left[i]`` and each of ``right[i]`` to ``end[i]``, places in ``order``."""
    edges: list[tuple[np.ndarray, np.ndarray]] = []
    while True:
        kept = right < end
        left, right, end = left[kept], right[kept], end[kept]
        if not len(left) or sum(len(a) for a, _ in edges) > len(root):
            _join(edges, root)
            edges = []
        if not len(left):
            return
        near = _near_pairs(order[left], order[right], hashes, grey, root)
        edges += [near] if len(near[0]) else []
        right = right + 1


def _near_pairs(
    a: np.ndarray, b: np.ndarray, hashes: np.ndarray, grey: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Those of the pairs ``a[i]``, ``b[i]`` that are near and not yet in one group; cheap tests first."""
    for near in (
        lambda a, b: root[a] != root[b],
        lambda a, b: _bit_count(hashes[a] ^ hashes[b]) <= HASH_DISTANCE,
        lambda a, b: _is_near(grey[a], grey[b]),
    ):
        kept = near(a, b)
        a, b = a[kept], b[kept]
        if not len(a):
            break
    return a, b


def _is_near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    apart = np.abs(first.astype(np.int16) - second)
    return (apart.mean(axis=1) <= GREY_DISTANCE) & (apart.max(axis=1) <= CELL_DISTANCE)


def _join(edges: list[tuple[np.ndarray, np.ndarray]], root: np.ndarray) -> None:
    """Make one group of each two that an edge leads between."""
    if edges:
        a, b = (np.concatenate(ends) for ends in zip(*edges, strict=True))
        joined = coo_array((np.ones(len(a), dtype=bool), (root[a], root[b])), shape=(len(root), len(root)))
        root[:] = connected_components(joined, directed=False)[1][root]


def _bit_count(values: np.ndarray) -> np.ndarray:
    """Set bits of each uint64, by adding neighbouring fields (numpy has its own from 2.0, this works in
    1.26)."""
    values = values - ((values >> np.uint64(1)) & np.uint64(0x5555555555555555))
    values = (values & np.uint64(0x3333333333333333)) + ((values >> np.uint64(2)) & np.uint64(0x3333333333333333))
    values = (values + (values >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (values * np.uint64(0x0101010101010101)) >> np.uint64(56)
