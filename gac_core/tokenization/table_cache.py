"""A cache on disk for tables that take long to build, keyed by their content.

Each entry is one file of integer arrays with a checksum. Files are written completely and then renamed, so that several
processes may build the same entry at once; a damaged or unreadable file counts as missing and is written again. The
folder is ``$GAC_CACHE_DIR``, by default ``~/.cache/gac``; an empty ``GAC_CACHE_DIR`` disables the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[Any]
_CHECKSUM = "checksum"


def folder() -> Path | None:
    """Returns the folder of the cache, or None if the cache is disabled."""
    given = os.environ.get("GAC_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None
    return Path.home() / ".cache" / "gac"


def fingerprint(parts: Iterable[str]) -> str:
    """Returns a key that depends on every part: a SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def load(key: str) -> dict[str, Array] | None:
    """Returns the arrays of an entry, or None if it is missing or damaged."""
    place = folder()
    if place is None:
        return None
    try:
        with (place / f"{key}.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("cache entry %s cannot be read and is built again: %s", key, error)
        return None
    checksum = arrays.pop(_CHECKSUM, None)
    if checksum is None or checksum.tobytes() != _sum(arrays):
        logger.warning("cache entry %s is damaged and is built again", key)
        return None
    return arrays


def store(key: str, arrays: Mapping[str, Array]) -> None:
    """Writes an entry; logs a warning where that is impossible, for example on a full or read-only disk."""
    place = folder()
    if place is None:
        return
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, suffix=".part", delete=False) as file:
            try:
                np.savez(file, allow_pickle=False, **{_CHECKSUM: np.frombuffer(_sum(arrays), np.uint8)}, **arrays)
                file.close()
                os.replace(file.name, place / f"{key}.npz")
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        logger.warning("cannot write to the cache %s: %s", place, error)


def _sum(arrays: Mapping[str, Array]) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return digest.digest()


def pack(strings: Sequence[bytes | None]) -> dict[str, Array]:
    """Returns byte strings as arrays: their concatenated bytes, uint8, and their lengths, int32; -1 for None."""
    lengths = np.array([-1 if data is None else len(data) for data in strings], np.int32)
    return {"bytes": np.frombuffer(b"".join(data for data in strings if data), np.uint8), "lengths": lengths}


def unpack(arrays: Mapping[str, Array]) -> list[bytes | None]:
    """Returns the byte strings that `pack` was given."""
    blob = arrays["bytes"].tobytes()
    lengths = arrays["lengths"]
    ends = np.cumsum(np.maximum(lengths, 0)).tolist()
    out: list[bytes | None] = [blob[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]
    for index in np.flatnonzero(lengths < 0).tolist():
        out[index] = None
    return out
