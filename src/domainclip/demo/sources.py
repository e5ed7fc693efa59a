"""Which bundled images the demo cuts its patches from, where from, under which licence, and how it words them.

All are files of scikit-image's wheel whose licence note says CC0 or public domain (the docstrings of
``skimage.data``). Images whose note says only "no known copyright restrictions", or nothing, are left out.

Training, validation and test patches come from disjoint blocks of an image, ``GAP`` pixels or more apart, so
no pixel is in two splits; where an image is uneven, the blocks are laid so that each split sees its kinds of
surface. Boxes are (left, top, right, bottom) in source pixels, right and bottom exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass

GAP = 4
SPLITS = ("train", "val", "test")
Box = tuple[int, int, int, int]

# (column, row) in the 4 × 4 grid; a test block in every row and every column, so that uneven light, perspective
# and depth across an image are in the test as they are in training
_TEST_CELLS = {(1, 0), (3, 1), (0, 2), (2, 3)}
_VAL_CELLS = {(3, 0), (0, 3)}

CC0 = "CC0 1.0"
PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Source:
    """One class: an image, its blocks per split, and the captions of its patches.

    ``sides`` bounds the side of a square crop in source pixels before it is resized. ``min_contrast`` is the least
    standard deviation of the grey values (0-255) that a patch must have not to be empty; ``max_dark`` the largest
    fraction of its pixels darker than 16. Every caption contains ``label`` and holds for any patch of the blocks.
    """

    label: str
    file: str
    image_size: tuple[int, int]
    shows: str
    origin: str
    licence: str
    sides: tuple[int, int]
    blocks: dict[str, list[Box]]
    captions: tuple[str, ...]
    min_contrast: float = 8.0
    max_dark: float = 1.0


def grid(area: Box) -> dict[str, list[Box]]:
    """``area`` as 4 × 4 blocks with gaps between them: ten to train on, two to validate, four to test."""
    left, top, right, bottom = area
    blocks: dict[str, list[Box]] = {split: [] for split in SPLITS}
    for row in range(4):
        for column in range(4):
            cell = (column, row)
            split = "test" if cell in _TEST_CELLS else "val" if cell in _VAL_CELLS else "train"
            blocks[split].append(
                (
                    left + column * (right - left) // 4,
                    top + row * (bottom - top) // 4,
                    left + (column + 1) * (right - left) // 4 - GAP,
                    top + (row + 1) * (bottom - top) // 4 - GAP,
                )
            )
    return blocks


SOURCES: tuple[Source, ...] = (
    Source(
        label="retina",
        file="retina.jpg",
        image_size=(1411, 1411),
        shows="fundus photograph of a normal left eye",
        origin="Mikael Häggström, Wikimedia Commons",
        licence=CC0,
        sides=(150, 220),
        # the square that leaves out most of the black surround of the round image
        blocks=grid((110, 110, 1300, 1300)),
        max_dark=0.0,
        min_contrast=3.0,
        captions=(
            "a fundus photograph of a human retina",
            "part of a healthy retina taken with a fundus camera",
            "reddish retina of a left eye in an eye examination",
            "an ophthalmology picture of the retina at the back of the eye",
            "close view of a retina without signs of disease",
        ),
    ),
    Source(
        label="galaxies",
        file="hubble_deep_field.jpg",
        image_size=(1000, 872),
        shows="Hubble eXtreme Deep Field",
        origin="NASA, HubbleSite",
        licence=PUBLIC_DOMAIN,
        sides=(96, 150),
        blocks=grid((0, 0, 1000, 872)),
        captions=(
            "distant galaxies in a deep field of the Hubble telescope",
            "a space telescope picture of galaxies on a black sky",
            "faint galaxies scattered over dark space",
            "an astronomical exposure showing many small galaxies",
            "galaxies of the early universe as coloured specks of light",
        ),
    ),
    Source(
        label="brick wall",
        file="brick.png",
        image_size=(512, 512),
        shows="a small section of a brick wall",
        origin="CC0Textures, Bricks25",
        licence=CC0,
        sides=(84, 120),
        blocks=grid((0, 0, 512, 512)),
        captions=(
            "a brick wall with light mortar joints",
            "grey picture of a brick wall, the courses running upwards",
            "masonry: a section of a brick wall",
            "rows of long bricks in a brick wall",
            "the surface of a brick wall",
        ),
    ),
    Source(
        label="grass",
        file="grass.png",
        image_size=(512, 512),
        shows="grass seen from above",
        origin="linolafett, DeviantArt",
        licence=CC0,
        sides=(84, 120),
        blocks=grid((0, 0, 512, 512)),
        captions=(
            "blades of grass seen from above",
            "a grey picture of a patch of grass",
            "grass in a meadow, stalks lying in all directions",
            "ground covered with grass",
            "tangled grass in daylight",
        ),
    ),
    Source(
        label="gravel",
        file="gravel.png",
        image_size=(512, 512),
        shows="gravel seen from above",
        origin="CC0Textures, Gravel04",
        licence=CC0,
        sides=(84, 120),
        blocks=grid((0, 0, 512, 512)),
        captions=(
            "loose gravel of crushed stone",
            "a bed of gravel seen from above",
            "angular stones of a gravel path",
            "building material: coarse gravel",
            "grey gravel, stones packed closely",
        ),
    ),
    Source(
        label="handwriting",
        file="text.png",
        image_size=(448, 172),
        shows="handwritten formulas on ruled paper",
        origin="Wikipedia, Corner.png",
        licence=PUBLIC_DOMAIN,
        sides=(48, 72),
        blocks={
            "train": [(0, 0, 138, 172), (142, 0, 252, 172)],
            "val": [(256, 0, 328, 172)],
            "test": [(332, 0, 448, 172)],
        },
        min_contrast=23.0,
        captions=(
            "handwriting in ink on a sheet of paper",
            "strokes of handwriting from a mathematical note",
            "a scanned scrap of handwriting",
            "dark handwriting on grey ruled paper",
            "a notebook page with handwriting, seen at an angle",
        ),
    ),
    Source(
        label="cat fur",
        file="chelsea.png",
        image_size=(451, 300),
        shows="Chelsea the cat",
        origin="Stefan van der Walt",
        licence=CC0,
        sides=(44, 64),
        # the face without its eyes, nose, ears and the blurred room behind it
        blocks={
            "train": [(50, 20, 130, 84), (134, 20, 200, 84), (86, 150, 146, 214), (214, 88, 272, 152)],
            "val": [(276, 30, 342, 96)],
            "test": [(204, 20, 272, 84), (150, 150, 214, 214)],
        },
        captions=(
            "cat fur in warm brown tones",
            "close view of the cat fur of a tabby",
            "soft cat fur of a pet",
            "the coat of a domestic animal: cat fur",
            "brown and beige cat fur",
        ),
    ),
    Source(
        label="wood",
        file="coffee.png",
        image_size=(600, 400),
        shows="a coffee cup on a wooden table",
        origin="Rachel Michetti",
        licence=CC0,
        sides=(44, 64),
        blocks={
            "train": [(484, 90, 600, 190), (484, 264, 600, 330), (0, 130, 72, 260)],
            "val": [(484, 194, 600, 260)],
            "test": [(484, 334, 600, 400), (0, 264, 72, 400)],
        },
        captions=(
            "the wood of a worn table top",
            "varnished wood in warm light",
            "orange brown wood of a used table",
            "surface of a board of wood",
            "old brown wood, a natural material",
        ),
    ),
    Source(
        label="glazed ceramic",
        file="coffee.png",
        image_size=(600, 400),
        shows="a coffee cup on a wooden table",
        origin="Rachel Michetti",
        licence=CC0,
        sides=(40, 58),
        blocks={
            "train": [(96, 140, 170, 216), (404, 216, 466, 280)],
            "val": [(404, 284, 450, 330)],
            "test": [(96, 220, 170, 290), (414, 140, 470, 212)],
        },
        min_contrast=2.0,
        max_dark=0.15,
        captions=(
            "dark red glazed ceramic with a smooth surface",
            "a piece of glazed ceramic tableware",
            "shiny glazed ceramic of a saucer",
            "a close view of red glazed ceramic",
            "crockery: glazed ceramic",
        ),
    ),
    Source(
        label="lattice tower",
        file="rocket.jpg",
        image_size=(640, 427),
        shows="a launch pad at dusk",
        origin="SpaceX",
        licence=PUBLIC_DOMAIN,
        sides=(60, 84),
        blocks={
            "train": [(8, 0, 100, 200), (4, 204, 96, 330)],
            "val": [(556, 0, 640, 116)],
            "test": [(552, 120, 640, 330)],
        },
        captions=(
            "a steel lattice tower against a blue evening sky",
            "struts of a lattice tower at a launch site",
            "part of a tall lattice tower at dusk",
            "crossed steel members of a lattice tower",
            "dark lattice tower in front of a deep blue sky",
        ),
    ),
)
