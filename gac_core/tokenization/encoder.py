"""Text to ids with a Hugging Face tokenizer, from any number of threads."""

from __future__ import annotations

import copy
import logging
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from gac_core.errors import RequestError

logger = logging.getLogger(__name__)
# Longer texts, in characters, are encoded one at a time: encoding takes about a hundred times their size in memory.
_LARGE = 2**18
_LARGE_LOCK = threading.Lock()


class Encoder:
    """Encodes texts; safe to call from many threads.

    Fast tokenizers (``is_fast``) are called without a lock. Their ``encode`` reads the Rust tokenizer through a shared
    borrow and releases the GIL meanwhile, so that calls run in parallel; the BPE cache inside has a lock of its own.
    What is not safe is changing the Rust tokenizer while another thread encodes: PyO3 then raises ``RuntimeError:
    Already borrowed`` (huggingface/transformers#47085). ``encode`` changes it only where truncation, padding or
    ``encode_special_tokens`` differ from what the call asks for. All calls here ask for the same, and the first one is
    made in the constructor, before another thread has the encoder; later calls change nothing.

    Other tokenizers (Python) are not made for several threads: a lock is held during each call. Short texts that must
    not wait for a long one go through a copy of the tokenizer, see `for_short_texts`.

    Args:
        tokenizer: The Hugging Face tokenizer. From now on it may be read, but not be changed or called with truncation
            or padding.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._is_fast = bool(getattr(tokenizer, "is_fast", False))
        self._lock: AbstractContextManager[Any] = nullcontext() if self._is_fast else threading.Lock()
        self.encode("a")

    def for_short_texts(self) -> Encoder:
        """Returns an encoder with the same results whose calls do not wait for calls of this one."""
        if self._is_fast:
            return self
        try:
            return Encoder(copy.deepcopy(self._tokenizer))
        except Exception as error:
            logger.info(
                "tokenizer %s cannot be copied (%s); commits wait while a prompt is encoded",
                type(self._tokenizer).__name__,
                error,
            )
            return self

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text.

        Args:
            text: The text.
            add_special_tokens: Whether to add what the tokenizer adds to a text, such as its BOS. Default False.

        Raises:
            RequestError: The text contains a lone surrogate.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt contains the lone surrogate {text[error.start]!r}, which is not a character; replace "
                "it, for example with text.encode('utf-8', 'replace').decode()"
            ) from None
        with self._lock, _LARGE_LOCK if len(text) > _LARGE else nullcontext():
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens, verbose=False))
