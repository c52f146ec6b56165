"""The methods of `Ensemble` that encode, count and decode tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gac_core.chat.conversation import Prompt
from gac_core.sampling import SamplingParams

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.engine.session import Session


class Tokenizing:
    """The methods of `Ensemble` that encode, count and decode tokens."""

    _session: Session
    _input_processor: InputProcessor

    def encode(self, text: str, gate: str | None = None) -> list[int]:
        """Returns a text in the gate's ids, without special tokens; for counting.

        Args:
            text: The text.
            gate: Name of the member whose ids are returned. Default: the ensemble's gate.

        Raises:
            RequestError: The gate is not a member, or the text cannot be encoded.
        """
        self._session.check_process()
        return self._input_processor.encode(text, gate)

    def decode(self, token_ids: Sequence[int], gate: str | None = None) -> bytes:
        """Returns the bytes that ids of the gate write; control tokens write none.

        Args:
            token_ids: The ids.
            gate: Name of the member whose ids they are. Default: the ensemble's gate.

        Raises:
            RequestError: The gate is not a member, or its tokenizer has no token of an id.
        """
        self._session.check_process()
        return self._input_processor.decode(token_ids, gate)

    def prompt_tokens(self, prompt: Prompt, params: SamplingParams | None = None) -> dict[str, list[int]]:
        """Returns a prompt in the ids of each participant by name, chat template and tools included.

        Args:
            prompt: As in `generate`.
            params: The request's parameters, which determine the participating members. Default `SamplingParams()`.

        Raises:
            RequestError: The prompt is wrong.
        """
        self._session.check_process()
        return self._input_processor.prompt_tokens(prompt, params or SamplingParams())

    def count_tokens(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Returns the tokens of a prompt for the participant that reads most; arguments as in `prompt_tokens`.

        Raises:
            RequestError: The prompt is wrong.
        """
        return max(map(len, self.prompt_tokens(prompt, params).values()))
