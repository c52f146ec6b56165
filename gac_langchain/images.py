"""Content blocks of messages that hold images, in all forms that LangChain's users write, as the ensemble's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gac_core import Image, RequestError, quote

IMAGE_BLOCKS = ("image", "image_url", "input_image")
_OTHER_MEDIA = {
    "audio": "sound",
    "input_audio": "sound",
    "video": "video",
    "file": "documents such as PDF",
    "input_file": "documents such as PDF",
    "document": "documents such as PDF",
    "media": "other media",
}


def read_image(block: Mapping[str, Any]) -> Image:
    """Returns the image of a content block.

    Args:
        block: A standard block (``{"type": "image", "base64": ..., "mime_type": ...}``), one of LangChain before 1.0
            (``"source_type": "base64"``), one of OpenAI's (``image_url``, ``input_image``) or Anthropic's (``source``).
            URLs must be ``data:`` URLs.

    Raises:
        RequestError: The block has another form, or its data is not a supported image.
    """
    for held in (block, block.get("source")):
        if not isinstance(held, Mapping):
            continue
        if held.get("file_id") is not None or held.get("source_type") == "id":
            raise RequestError("an image is given by a file_id, but no files are stored here; give its bytes as base64")
        for key in ("base64", "data"):
            if held.get(key) is not None:
                return Image.open(held[key]) if isinstance(held[key], bytes) else Image.from_base64(held[key])
        if held.get("url") is not None:
            return Image.from_url(held["url"])
    if block.get("image_url") is not None:
        return _read_image_url(block["image_url"], block.get("detail"))
    raise RequestError(
        f"a content block of type {quote(block.get('type'))} has no image: its keys are "
        f"{', '.join(sorted(map(str, block)))}; give {{'type': 'image', 'base64': ..., 'mime_type': 'image/png'}}"
    )


def refuse_block(kind: object) -> RequestError:
    """Returns the error of a content block that no member reads."""
    media = _OTHER_MEDIA.get(kind) if isinstance(kind, str) else None
    if media is None:
        return RequestError(
            f"a message has a content block of type {quote(kind)}; only text and, from users, images are read"
        )
    return RequestError(
        f"a message has a content block of type {quote(kind)}, but the models do not read {media}; give its text"
    )


def refuse_image(role: str) -> RequestError:
    """Returns the error of an image in a message of a role that cannot have any."""
    return RequestError(
        f"a message of role {role!r} has an image, which only human messages may have; describe it in text there, or "
        "append a HumanMessage with the image"
    )


def _read_image_url(value: Any, detail: Any) -> Image:
    """Returns the image of OpenAI's ``image_url``: a mapping with ``url``, or the URL alone."""
    if isinstance(value, Mapping):
        value, detail = value.get("url"), value.get("detail", detail)
    if detail not in (None, "auto"):
        raise RequestError(
            f"an image's detail must be 'auto', not {quote(detail)}: each member's processor sets the resolution; "
            "scale the image instead"
        )
    return Image.from_url(value)
