"""Images in conversations: encoded bytes, checked by their signature, decoded only where a model reads them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gac_core.errors import ImageError, quote, shorten

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64_000_000
MAX_TOTAL_PIXELS = 128_000_000
"""Of all images of a conversation, which are decoded at the same time: 384 MB."""
# Decoders are chosen by signature: no other format of Pillow is ever tried on a caller's bytes.
_SIGNATURES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), ("image/png", "PNG")),
    (re.compile(rb"\xff\xd8\xff"), ("image/jpeg", "JPEG")),
    (re.compile(rb"GIF8[79]a"), ("image/gif", "GIF")),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), ("image/webp", "WEBP")),
)
_FORMATS = "PNG, JPEG, WebP or GIF"
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:")
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?:;[^;,]*)*;base64,", re.IGNORECASE)


@dataclass(frozen=True, repr=False)
class Image:
    """An encoded image: PNG, JPEG, WebP, or the first frame of a GIF.

    The signature and the size in bytes are checked on construction; the image is decoded by `pixels`.

    Attributes:
        data: The encoded image, at most 20 MiB.

    Raises:
        ImageError: The bytes are not an image of a supported format, or too many.
    """

    data: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise ImageError(f"an image's data must be bytes, not {quote(self.data)}; Image.open reads other sources")
        _check_size(len(self.data))
        if self._kind is None:
            raise ImageError(
                f"the image begins with {quote(self.data[:12])}, which is not {_FORMATS}; convert it to one of these"
            )

    @classmethod
    def open(cls, source: Any) -> Image:
        """Returns an image from a path, bytes, an image of Pillow, a ``data:`` URL, or an `Image`.

        Args:
            source: The path as a string or ``os.PathLike``; the encoded bytes; a ``PIL.Image.Image``, which is encoded
                as PNG without loss; or ``"data:image/png;base64,..."``. Other URLs are refused.

        Raises:
            ImageError: The source has another type, cannot be read, or is not a supported image.
        """
        if isinstance(source, Image):
            return source
        if isinstance(source, (bytes, bytearray, memoryview)):
            return cls(bytes(source))
        if isinstance(source, str) and _SCHEME.match(source):
            return cls.from_url(source)
        if isinstance(source, (str, os.PathLike)):
            return cls(_read_file(source))
        if callable(getattr(source, "save", None)) and hasattr(source, "mode"):
            return cls(_encode(source))
        raise ImageError(
            f"an image must be a path, bytes, a PIL image or a data: URL, not a {quote(type(source).__name__)}"
        )

    @classmethod
    def from_url(cls, url: str) -> Image:
        """Returns the image of a ``data:`` URL in base64. No other URL is fetched, and no path is opened.

        Args:
            url: ``"data:image/png;base64,..."``. The format follows from the bytes, not from the media type.

        Raises:
            ImageError: It is another URL, or its data is not a supported image.
        """
        if not isinstance(url, str):
            raise ImageError(f"the URL of an image must be a string, not {quote(url)}")
        head = _DATA_URL.match(url)
        if head is None:
            remedy = "write it as data:image/png;base64,..."
            if url[:5].lower() != "data:":
                remedy = f"URLs are never fetched: download the image and pass its bytes, or {remedy}"
            raise ImageError(f"the URL {quote(url)} of an image is not a data: URL in base64; {remedy}")
        media_type = head["type"]
        if media_type and not media_type.lower().startswith("image/"):
            raise ImageError(f"a data: URL of type {quote(media_type)} is not an image; give {_FORMATS}")
        return cls.from_base64(url[head.end() :])

    @classmethod
    def from_base64(cls, text: str) -> Image:
        """Returns an image from its bytes in base64; white space is ignored.

        Raises:
            ImageError: The text is not base64, or its bytes are not a supported image.
        """
        if not isinstance(text, str):
            raise ImageError(f"an image in base64 must be a string, not {quote(text)}")
        packed = "".join(text.split())
        _check_size(len(packed) // 4 * 3 - packed[-2:].count("="))
        try:
            data = base64.b64decode(packed, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"the image {quote(text)} is not base64: {error}") from error
        return cls(data)

    @property
    def media_type(self) -> str:
        """The type by the image's signature: ``image/png``, ``image/jpeg``, ``image/webp`` or ``image/gif``."""
        assert self._kind is not None
        return self._kind[0]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the encoded bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def data_url(self) -> str:
        """The image as a ``data:`` URL in base64."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as the header says; errors as in `pixels`."""
        with self._opened() as opened:
            return opened.size

    def pixels(self) -> PillowImage:
        """Returns the decoded image as a Pillow image of mode RGB, turned as its EXIF orientation says.

        Raises:
            ImageError: Pillow is not installed, the image has more than 64 million pixels, or it is damaged.
        """
        with self._opened() as opened:
            from PIL import ImageOps

            try:
                return ImageOps.exif_transpose(opened).convert("RGB")
            except Exception as error:
                # Decoders raise OSError, ValueError, SyntaxError, struct.error and others.
                raise self._damaged(" ".join(str(error).split())) from error

    def _opened(self) -> PillowImage:
        """Returns the image with its header read."""
        try:
            from PIL import Image as pillow
        except ImportError as error:
            raise ImageError(
                "images need Pillow: pip install 'gac-ensemble[vision]', or leave the image out"
            ) from error
        assert self._kind is not None
        try:
            opened = pillow.open(io.BytesIO(self.data), formats=(self._kind[1],))
        except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
            raise ImageError(f"the image is too large: at most {MAX_PIXELS} pixels are decoded; scale it") from error
        except Exception as error:
            raise self._damaged("its header is not valid") from error
        width, height = opened.size
        problem = None
        if width * height > MAX_PIXELS:
            problem = f"{width} x {height} pixels; at most {MAX_PIXELS} pixels are decoded; scale it"
        elif opened.mode.startswith(("I", "F")):
            # Pillow clips these values, and most of the image becomes white.
            problem = "more than 8 bits of grey per pixel; convert it to 8 bits"
        if problem is not None:
            opened.close()
            raise ImageError(f"the image has {problem}")
        return opened

    def _damaged(self, reason: str) -> ImageError:
        return ImageError(f"the {self.media_type} cannot be decoded: {shorten(reason, 200)}; give an undamaged file")

    @property
    def _kind(self) -> tuple[str, str] | None:
        """The media type and Pillow's name of the format, by the signature."""
        return next((kind for pattern, kind in _SIGNATURES if pattern.match(self.data)), None)

    def __repr__(self) -> str:
        return f"Image(<{self.media_type}, {len(self.data)} bytes>)"


@dataclass(frozen=True)
class PlacedImage:
    """An image within a message's text.

    Attributes:
        image: The image.
        offset: The image stands before this character of the message's ``content``.
    """

    image: Image
    offset: int


def check_total(images: Sequence[Image]) -> None:
    """Raises an `ImageError` if images have too many pixels together; reads their headers only."""
    total = sum(width * height for width, height in (image.size for image in images))
    if total > MAX_TOTAL_PIXELS:
        raise ImageError(
            f"the {len(images)} images of the conversation have {total} pixels together; at most {MAX_TOTAL_PIXELS} "
            "are decoded at once; scale them, or leave some out"
        )


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise ImageError(f"the image has {size} bytes; at most {MAX_BYTES} are read; scale or compress it")


def _read_file(path: str | os.PathLike[str]) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"the image {quote(os.fspath(path))} cannot be read: {reason}") from error


def _encode(image: Any) -> bytes:
    """Returns an image of Pillow as PNG."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="PNG")
    except Exception as error:
        raise ImageError(
            f"a PIL image of mode {quote(image.mode)} cannot be written as PNG: {error}; convert it to RGB"
        ) from error
    return buffer.getvalue()
