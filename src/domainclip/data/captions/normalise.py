"""One spelling for what is written in several: typographic characters, numbers with units."""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = {
    "‘": "'",
    "’": "'",
    "‚": "'",
    "‛": "'",
    "′": "'",
    "“": '"',
    "”": '"',
    "„": '"',
    "‟": '"',
    "″": '"',
    "«": '"',
    "»": '"',
    "‐": "-",
    "‑": "-",
    "‒": "-",
    "–": "-",
    "—": " - ",
    "―": " - ",
    "−": "-",
    "…": "...",
    "ﬀ": "ff",
    "ﬁ": "fi",
    "ﬂ": "fl",
    "ﬃ": "ffi",
    "ﬄ": "ffl",
    "ﬅ": "st",
    "ﬆ": "st",
    "μ": "µ",
    "º": "°",
    "•": "-",
}
# Not NFKC: it turns 10³ into 103 and m² into m2, which say something else.
_TABLE = str.maketrans(_CHARACTERS | {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)})
_INVISIBLE = {"Cf", "Cc"}  # soft hyphens, joiners, direction marks, byte-order marks; control characters

_SPELLINGS = {
    "um": "µm",
    "mcm": "µm",
    "ug": "µg",
    "mcg": "µg",
    "ul": "µL",
    "uL": "µL",
    "µl": "µL",
    "ml": "mL",
    "dl": "dL",
    "usec": "µs",
    "us": "µs",
    "Kg": "kg",
    "KG": "kg",
    "cc": "mL",
    "ºC": "°C",
    "deg C": "°C",
    "degC": "°C",
    "degrees C": "°C",
    "degrees Celsius": "°C",
    "khz": "kHz",
    "percent": "%",
    "per cent": "%",
    "mg/l": "mg/L",
    "mg/dl": "mg/dL",
    "g/dl": "g/dL",
    "ng/ml": "ng/mL",
    "µg/l": "µg/L",
}
_UNITS = (
    "nm",
    "µm",
    "mm",
    "cm",
    "dm",
    "km",
    "ng",
    "µg",
    "mg",
    "kg",
    "nL",
    "µL",
    "mL",
    "dL",
    "ms",
    "µs",
    "ns",
    "mV",
    "kV",
    "eV",
    "keV",
    "MeV",
    "Hz",
    "kHz",
    "MHz",
    "GHz",
    "THz",
    "Pa",
    "kPa",
    "MPa",
    "GPa",
    "mmHg",
    "kN",
    "mA",
    "kW",
    "MW",
    "°C",
    "%",
    "ppm",
    "mg/dL",
    "mg/L",
    "ng/mL",
    "µg/L",
    "g/dL",
    "dpi",
    "Å",
)
"""Units that stand for nothing else. Single letters are left alone: 5m may be metres, minutes or months."""
_NO_SPACE_BEFORE = {"%"}
_NUMBER_WITH_UNIT = re.compile(
    r"(?<![\w.])(\d+(?:[.,]\d+)?)\s*-?\s*("
    + "|".join(re.escape(unit) for unit in sorted({*_UNITS, *_SPELLINGS}, key=len, reverse=True))
    + r")(?![\w²³])"
)
_TIMES = re.compile(r"(?<=\d)\s*[xX×]\s*(?=\d)")


def normalise_characters(text: str) -> str:
    """Plain quotation marks and hyphens, no ligatures or full-width letters, nothing invisible, single spaces.

    What carries meaning stays: superscripts, Greek letters, accents, degree and micro signs.

    Args:
        text: The text.

    Returns:
        The text with one spelling of its characters.
    """
    text = unicodedata.normalize("NFC", text).translate(_TABLE)
    text = " ".join(text.split())  # line ends and tabs are control characters as well
    return " ".join("".join(c for c in text if unicodedata.category(c) not in _INVISIBLE).split())


def normalise_units(text: str) -> str:
    """'5mm' and '5-mm' as '5 mm', '3 um' as '3 µm', '20 ml' as '20 mL', '40 percent' as '40%', '3x4 cm' as '3 x 4 cm'.

    Numbers are never changed or converted.

    Args:
        text: The text.

    Returns:
        The text with one spelling of its units.
    """

    def spelled(found: re.Match[str]) -> str:
        unit = _SPELLINGS.get(found[2], found[2])
        return found[1] + ("" if unit in _NO_SPACE_BEFORE else " ") + unit

    return _NUMBER_WITH_UNIT.sub(spelled, _TIMES.sub(" x ", text))
