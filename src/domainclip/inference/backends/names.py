"""How a recipe names a back end: ``auto``, ``torch``, ``openvino``, ``openvino:int8``, and in which order they are
tried."""

from __future__ import annotations

from typing import cast, get_args

from domainclip.errors import ConfigurationError
from domainclip.inference.backends import onnx_graphs, openvino_graphs  # noqa: F401  (they register themselves)
from domainclip.inference.backends.encoder import BACKENDS, Precision

AUTO, TORCH = "auto", "torch"


def parse_backend(text: str) -> tuple[str, Precision | None]:
    """Take a recipe's ``backend`` apart.

    Args:
        text: ``auto``, a name, or a name with a precision (``openvino:int8``).

    Returns:
        Name and precision; None where the back end is to choose.

    Raises:
        ConfigurationError: There is no such back end or precision.
    """
    name, colon, precision = text.partition(":")
    if name not in (AUTO, TORCH) and name not in BACKENDS:
        raise ConfigurationError(
            f"backend={text}: there is no such back end. Known: {', '.join([AUTO, TORCH, *BACKENDS])}"
        )
    if not colon:
        return name, None
    if name == AUTO:
        raise ConfigurationError(f"backend={text}: auto chooses the precision as well. Write auto alone")
    known = get_args(Precision) if name == TORCH else tuple(BACKENDS[name].graphs)
    if precision not in known:
        raise ConfigurationError(f"backend={text}: {name} computes in {' or '.join(known)}, not in {precision!r}")
    return name, cast(Precision, precision)


def in_order() -> list[str]:
    """The back ends that compute by graphs, as they are tried.

    Returns:
        Their names; those that compute in fewer bits, which are likely to be faster, come first.
    """
    return sorted(BACKENDS, key=lambda name: -len(BACKENDS[name].graphs))
