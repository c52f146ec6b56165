"""The content of a message: a string, or parts of text and images, which become one text with images at offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gac_core.errors import RequestError, quote
from gac_core.images import Image, PlacedImage

# Characters of all parts of one message: more than any prompt may have. A part may be given many times.
_MAX_CONTENT = 2**23


def read_content(content: Any) -> tuple[str, tuple[PlacedImage, ...]]:
    """Returns the joined texts of a message's content, and its images.

    Args:
        content: A string, or a list of strings, `Image` and parts in OpenAI's form: ``{"type": "text", "text": ...}``,
            ``{"type": "image_url", "image_url": {"url": "data:..."}}`` and ``{"type": "image", "image": ...}`` with an
            `Image` or its bytes.

    Raises:
        RequestError: The content or a part has another form, or the texts are too long.
    """
    if isinstance(content, str):
        return content, ()
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise RequestError(f"a message's content must be a string or a list of parts, not {type(content).__name__}")
    texts: list[str] = []
    images: list[PlacedImage] = []
    length = 0
    for part in content:
        read = _read_part(part)
        if isinstance(read, Image):
            images.append(PlacedImage(read, length))
            continue
        length += len(read)
        if length > _MAX_CONTENT:
            raise RequestError(f"a message's content has more than {_MAX_CONTENT} characters in all parts; shorten it")
        texts.append(read)
    return "".join(texts), tuple(images)


def split_content(content: str, images: Sequence[PlacedImage]) -> tuple[str | Image, ...]:
    """Returns a text and the images within it as parts in order, without empty texts."""
    parts: list[str | Image] = []
    start = 0
    for placed in images:
        parts += [content[start : placed.offset], placed.image]
        start = placed.offset
    parts.append(content[start:])
    return tuple(part for part in parts if part)


def check_images(images: Any, length: int) -> tuple[PlacedImage, ...]:
    """Returns images given by their offsets into a text of ``length`` characters.

    Raises:
        RequestError: They are not `PlacedImage`, or their offsets are not in the text or not ascending.
    """
    if not isinstance(images, Sequence) or not all(isinstance(placed, PlacedImage) for placed in images):
        raise RequestError(f"a message's images must be PlacedImage, not {quote(images)}; give them in its content")
    least = 0
    for placed in images:
        offset = placed.offset
        if isinstance(offset, bool) or not isinstance(offset, int) or not least <= offset <= length:
            raise RequestError(
                f"an image's offset must be between {least} and {length}, in ascending order, not {quote(offset)}"
            )
        least = offset
    return tuple(images)


def _read_part(part: Any) -> str | Image:
    if isinstance(part, (str, Image)):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise RequestError(f"a part of type 'text' must have a string as its 'text', not {quote(part)}")
        return str(part["text"])
    if kind == "image":
        image = part.get("image")
        if not isinstance(image, (Image, bytes)):
            raise RequestError(
                f"a part of type 'image' must have an Image or bytes as its 'image', not {quote(image)}; Image.open "
                "reads files and images of Pillow"
            )
        return image if isinstance(image, Image) else Image(image)
    if kind == "image_url":
        return _read_image_url(part.get("image_url"))
    raise RequestError(
        f"a message's content has a part of type {quote(kind)}; only parts of type 'text', 'image' and 'image_url' are "
        "supported; Image.open reads files and images of Pillow"
    )


def _read_image_url(value: Any) -> Image:
    """Returns the image of OpenAI's ``image_url``: ``{"url": ..., "detail": ...}``, or the URL alone."""
    if isinstance(value, str):
        return Image.from_url(value)
    if not isinstance(value, Mapping) or not {"url"} <= set(value) <= {"url", "detail"}:
        raise RequestError(f"an image_url must have the key 'url' and may have 'detail', not {quote(value)}")
    if value.get("detail") not in (None, "auto"):
        raise RequestError(
            f"an image_url's detail must be 'auto', not {quote(value['detail'])}: each member's processor sets the "
            "resolution; scale the image instead"
        )
    return Image.from_url(value["url"])
