"""Sizes in bytes, written for people and read from them."""

from __future__ import annotations

import re

from gac_core.errors import ConfigError, quote

_UNITS = {f"{prefix}B": 1000**power for power, prefix in enumerate(("", "K", "M", "G", "T"))}
_UNITS |= {f"{prefix}iB": 1024**power for power, prefix in enumerate(("", "K", "M", "G", "T")) if prefix}
_BY_NAME = {name.lower(): size for name, size in _UNITS.items()}


def format_bytes(count: int) -> str:
    """Formats a number of bytes in MiB or GiB."""
    return f"{count / 2**30:.1f} GiB" if abs(count) >= 2**30 else f"{count / 2**20:.1f} MiB"


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size such as ``"80GiB"``, ``"24 GB"`` or ``"1000 B"``.

    Raises:
        ConfigError: It is not a size.
    """
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([a-zA-Z]*)", text.strip())
    unit = None if found is None else _BY_NAME.get(found[2].lower())
    if found is None or unit is None:
        raise ConfigError(f"{quote(text)} is not a size; give for example 80GiB, 24GB or 512MiB")
    return int(float(found[1]) * unit)
