"""`VisionProcessor`: images in rendered conversations, with a vision-language model's processor of transformers.

The member's chat template writes a placeholder for each image; the processor replaces it by as many image tokens as
the model computes features for, and computes pixel values. Text of users cannot become a placeholder: it carries marks
that divide spellings of control tokens until it is encoded.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gac_core.errors import GaCError, ImageError, shorten
from gac_core.images import Image, check_total
from gac_core.templates.rendering import apply_template
from gac_core.tokenization.escaping import encode_marked
from gac_core.tokenization.tokenizer import MemberTokenizer

# Processors of transformers take a placeholder after this character for text of a user, and do not expand it.
_ESCAPE = "\U000f0000"
_TOKEN_TYPES = ("mm_token_type_ids", "token_type_ids")
# Conversations whose images are decoded at the same time. One may need 2 GB for a moment, even if it arrives as 20 KB.
_DECODED_AT_ONCE = 2


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """What a vision-language model reads of the images in one prompt, besides token ids.

    Attributes:
        tensors: Keyword arguments of the model's forward for all images, such as ``pixel_values``; on the CPU.
        token_types: Keyword arguments with one value per id of the prompt, shape ``[1, tokens]``.
        keys: What identifies the positions up to the last image token in a KV cache: ids of text, and for image tokens
            a negative number that depends on the images.
        count: Number of images.
    """

    tensors: Mapping[str, Tensor]
    token_types: Mapping[str, Tensor]
    keys: tuple[int, ...]
    count: int

    @property
    def end(self) -> int:
        """The position after the last image token; up to it all is read in one forward."""
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Memory of the tensors."""
        return sum(tensor.nbytes for each in (self.tensors, self.token_types) for tensor in each.values())

    def cache_keys(self, start: int, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Returns what identifies ids of the text from a position on in a KV cache."""
        own = self.keys[start : start + len(token_ids)]
        return (*own, *token_ids[len(own) :])


@dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A prompt as one member reads it.

    Attributes:
        token_ids: Its ids.
        images: Its images; None without any, or if the member reads the text alone.
    """

    token_ids: list[int]
    images: ImageInputs | None = None

    @property
    def cache_keys(self) -> tuple[int, ...]:
        """What identifies the prompt in a KV cache: its ids, and negative numbers for those of images."""
        return tuple(self.token_ids) if self.images is None else self.images.cache_keys(0, self.token_ids)


class VisionProcessor:
    """Encodes rendered conversations with images for one vision-language member.

    Safe to use from many threads, of which two decode images at the same time; others wait for them.

    Args:
        processor: The model's processor, of transformers; from now on only read.
        image_token_id: The id whose embeddings the model replaces by features of images.

    Attributes:
        image_token_id: As given.
    """

    def __init__(self, processor: Any, image_token_id: int) -> None:
        self._processor = processor
        self.image_token_id = image_token_id
        self._decoding = threading.Semaphore(_DECODED_AT_ONCE)

    @property
    def placeholder(self) -> str:
        """What a chat template writes for one image."""
        return str(self._processor.image_token)

    def encode(
        self, tokenizer: MemberTokenizer, rendered: str, mark: str | None, images: Sequence[Image]
    ) -> EncodedPrompt:
        """Encodes a rendered conversation; marked spellings do not become control tokens.

        Args:
            tokenizer: The member's tokenizer.
            rendered: The conversation with a placeholder for each image.
            mark: As in `encode_marked`.
            images: The images, in the order of their placeholders.

        Raises:
            ImageError: The conversation has another number of placeholders, or an image cannot be read.
        """
        encoding = _MarkedTokenizer(tokenizer, mark)
        if not images:
            return EncodedPrompt(encoding.ids_of(rendered))
        if _ESCAPE + self.placeholder in rendered:
            raise ImageError("the character U+F0000 stands directly before an image; remove it")
        check_total(images)
        data = self._processed(tokenizer.name, encoding, rendered, images)
        token_ids: list[int] = data.pop("input_ids")[0].tolist()
        data.pop("attention_mask", None)
        types = {name: data.pop(name) for name in _TOKEN_TYPES if name in data}
        if types and encoding.lacks_offsets:
            raise ImageError(
                f"member {tokenizer.name!r} cannot read images: its processor, {type(self._processor).__name__}, "
                "derives token types from character offsets, which is not supported; leave the images out"
            )
        keys = self._keys(token_ids, images)
        if not 0 < len(keys) < len(token_ids):
            raise ImageError(
                f"member {tokenizer.name!r} cannot read the images: its prompt must contain image tokens and end with "
                "text; put text after the last image, or use a chat template that writes a generation prompt"
            )
        others = [name for name, value in data.items() if not isinstance(value, Tensor)]
        if others or not data:
            # Without them the model would read image tokens as text.
            found = (
                f"returns {', '.join(others)} in another form than a tensor" if others else "returns no pixel values"
            )
            raise ImageError(
                f"member {tokenizer.name!r} cannot read images: its processor, {type(self._processor).__name__}, "
                f"{found}, which is not supported; leave the images out"
            )
        return EncodedPrompt(token_ids, ImageInputs(data, types, keys, len(images)))

    def sample(self, tokenizer: MemberTokenizer, image: Image) -> EncodedPrompt:
        """Returns a short conversation about an image, for trials.

        Raises:
            Exception: The chat template rejects images; anything that it or the processor raises.
        """
        content = [{"type": "text", "text": "An image:"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
        turns = [{"role": "user", "content": content}]
        rendered = apply_template(tokenizer.hf, tokenizer.name, turns, None, generation_prompt=True)
        return self.encode(tokenizer, rendered, None, [image])

    def _processed(
        self, member: str, encoding: _MarkedTokenizer, rendered: str, images: Sequence[Image]
    ) -> dict[str, Any]:
        """Returns what the model's processor makes of a text and its images, which are decoded here."""
        processor = copy.copy(self._processor)
        processor.tokenizer = encoding
        with self._decoding:
            pixels = [image.pixels() for image in images]
            try:
                # As `apply_chat_template` of processors passes them: a list of images for each text.
                return dict(processor(images=[pixels], text=[rendered], return_tensors="pt"))
            except GaCError:
                raise
            except Exception as error:
                # The image processor and the checks of the number of placeholders may raise anything.
                remedy = "convert them to PNG of an ordinary size, or leave them out"
                if encoding.parses_special:
                    remedy += "; with parse_special=True the text must not spell a placeholder of an image"
                raise ImageError(
                    f"the processor of member {member!r} cannot read the images: {type(error).__name__}: "
                    f"{shorten(str(error))}; {remedy}"
                ) from error

    def _keys(self, token_ids: Sequence[int], images: Sequence[Image]) -> tuple[int, ...]:
        # Of all images together: a processor may scale one by what others are beside it.
        digest = hashlib.sha256(" ".join(image.digest for image in images).encode()).digest()
        key = -1 - int.from_bytes(digest[:7], "big")
        last = max((place for place, index in enumerate(token_ids) if index == self.image_token_id), default=-1)
        return tuple(key if index == self.image_token_id else index for index in token_ids[: last + 1])


class _MarkedTokenizer:
    """Stands in for a processor's tokenizer: encodes marked text as `encode_marked` does.

    Attributes:
        lacks_offsets: Whether the processor has asked for character offsets, which are not available.
        parses_special: Whether spellings of control tokens in the text become control tokens: there is no mark.
    """

    def __init__(self, tokenizer: MemberTokenizer, mark: str | None) -> None:
        self._tokenizer, self._mark = tokenizer, mark
        self.parses_special = mark is None
        self.lacks_offsets = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer.hf, name)

    def ids_of(self, text: str) -> list[int]:
        """Returns a rendered conversation's ids.

        As processors of transformers do, and their tokenizers do not, it adds the special tokens of a text where the
        template does not write its first one.
        """
        ids = encode_marked(self._tokenizer, text, self._mark)
        opening = self._tokenizer.hf.bos_token
        if opening is not None and text.startswith(opening):
            return ids
        before, after = self._tokenizer.added_around
        return [*before, *ids, *after]

    def __call__(self, text: str | Sequence[str], **settings: Any) -> _Encoding:
        ids = [self.ids_of(each) for each in ([text] if isinstance(text, str) else text)]
        return _Encoding({"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}, self)


class _Encoding(dict[str, Any]):
    """Ids without character offsets, of which the processor of Idefics3 asks for some even where it uses none."""

    def __init__(self, data: dict[str, Any], tokenizer: _MarkedTokenizer) -> None:
        super().__init__(data)
        self._tokenizer = tokenizer

    def char_to_token(self, batch_index: int, char_index: int) -> int:
        """Returns 0 and records that it was called."""
        self._tokenizer.lacks_offsets = True
        return 0
