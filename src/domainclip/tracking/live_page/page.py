"""The snapshot of one or several runs, its page and the thumbnails on it."""

from __future__ import annotations

import base64
import html
import io
import json
import re
import time
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from domainclip.data.images.reader import read_image
from domainclip.errors import CLIPFinetuningError, ConfigurationError
from domainclip.tracking.jsonl import finite
from domainclip.tracking.live_page.downsample import POINTS
from domainclip.tracking.live_page.run_view import RunView, recipe_difference

_POINTS_OF_ALL, _FEWEST = 1000, 50
"""So many points has a chart at most for all of its runs together, and a run at least: the page stays small."""
EDGE = 160
"""The longest side of a thumbnail, in pixels."""
_PAGE = resources.files("domainclip.tracking.live_page") / "page"
_WEB = resources.files("domainclip.web")
ASSETS = {
    "page.css": "text/css",
    **dict.fromkeys(
        ("figures.js", "marks.js", "chart.js", "panels.js", "histogram.js", "runs.js", "page.js"), "text/javascript"
    ),
    "icon.svg": "image/svg+xml",
    "vendor/uplot.min.css": "text/css",
    "vendor/uplot.min.js": "text/javascript",
}


def runs_in(paths: Sequence[Path]) -> list[Path]:
    """The folders of runs that are meant.

    Args:
        paths: Folders of runs, or folders that hold them.

    Returns:
        The folders, each once, in the order given; those within one by name.

    Raises:
        ConfigurationError: One of them is neither.
    """
    found: list[Path] = []
    for path in paths:
        inside = sorted(each.parent for name in _OF_A_RUN for each in path.glob(f"*/{name}"))
        if any((path / name).is_file() for name in _OF_A_RUN):
            found.append(path)
        elif inside:
            found += inside
        else:
            what = "holds no run" if path.is_dir() else "is not there"
            raise ConfigurationError(f"{path} {what}: give a folder that `domainclip train --output` has written")
    return list(dict.fromkeys(found))


_OF_A_RUN = ("recipe.yaml", "metrics.jsonl", "progress.json")


def snapshot_of(views: list[RunView]) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        views: The runs.

    Returns:
        ``made_at``, ``runs`` and ``recipe_difference``.
    """
    points = max(_FEWEST, min(POINTS, _POINTS_OF_ALL // max(1, len(views))))
    runs = [view.snapshot(points) for view in views]
    return {"made_at": time.time(), "runs": runs, "recipe_difference": recipe_difference(views)}


def to_json(snapshot: dict[str, Any]) -> str:
    """A snapshot as text.

    Args:
        snapshot: From ``snapshot_of``.

    Returns:
        JSON in a line, which may stand within a script element: it has no ``<``.
    """
    return json.dumps(finite(snapshot), allow_nan=False, separators=(",", ":"), default=str).replace("<", "\\u003c")


def asset(name: str) -> bytes:
    """A file of the page.

    Args:
        name: One of ``ASSETS``, or ``page.html``.

    Returns:
        Its content.
    """
    return ((_WEB if name.startswith("vendor/") else _PAGE) / name).read_bytes()


def thumbnail(path: Path) -> bytes:
    """A small version of an image.

    Args:
        path: The image.

    Returns:
        JPEG.

    Raises:
        ImageError: It cannot be read.
    """
    image = Image.fromarray(read_image(path, at_least=EDGE))
    image.thumbnail((EDGE, EDGE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def page_as_one_file(views: list[RunView]) -> str:
    """The page with everything it needs, as one HTML file that asks for nothing.

    Args:
        views: The runs.

    Returns:
        HTML.
    """
    snapshot = snapshot_of(views)
    snapshot["thumbnails"] = {}
    for path in sorted({path for view in views for path in view.images}):
        try:
            content = base64.b64encode(thumbnail(Path(path))).decode()
        except (CLIPFinetuningError, OSError):
            continue  # the page says that the image is not there
        snapshot["thumbnails"][path] = f"data:image/jpeg;base64,{content}"

    def inlined(match: re.Match[str]) -> str:
        name = match["style"] or match["script"]
        text = asset(name).decode()
        if name.endswith(".svg"):
            return f'<link rel="icon" href="data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()}">'
        if name.endswith(".css"):
            return f"<style>{text}</style>"
        return f"<script>{text}</script>"

    page = asset("page.html").decode()
    data = f'<script type="application/json" id="snapshot">{to_json(snapshot)}</script>\n'
    title = html.escape(", ".join(run["name"] for run in snapshot["runs"]))
    page = re.sub(r"<title>.*?</title>", lambda _: f"<title>{title} · domainclip</title>", page)
    head, scripts = page.split("<script", 1)
    return _ASSET.sub(inlined, head + data + "<script" + scripts)


_ASSET = re.compile(
    r'<link rel="(?:icon|stylesheet)" href="assets/(?P<style>[^"]+)">|<script src="assets/(?P<script>[^"]+)"></script>'
)
