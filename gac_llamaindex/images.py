"""Image blocks of LlamaIndex as the ensemble's images."""

from __future__ import annotations

from llama_index.core.base.llms.types import ImageBlock

from gac_core import Image, RequestError, quote


def read_image(block: ImageBlock) -> Image:
    """Returns the image of a block: its bytes or file object, else its path, else its ``data:`` URL.

    Raises:
        RequestError: The block has no image, a URL that would have to be fetched, a ``detail`` other than ``"auto"``,
            or data that is not a supported image.
    """
    if block.detail not in (None, "auto"):
        raise RequestError(
            f"an ImageBlock's detail must be 'auto', not {quote(block.detail)}: each member's processor sets the "
            "resolution; scale the image instead"
        )
    if block.image is not None:
        # Bytes are held in base64, or as they are where they were not validated.
        try:
            data = block.resolve_image().read()
        except (OSError, ValueError) as error:
            raise RequestError(f"the image of an ImageBlock cannot be read: {error}") from error
        return Image(data)
    if block.path is not None:
        return Image.open(block.path)
    if block.url is not None:
        return Image.from_url(str(block.url))
    raise RequestError("an ImageBlock has no image; give image=, path= or a data: URL as url=")
