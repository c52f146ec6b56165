"""Random models of realistic size with a prescribed greedy text: the computation is real, an offset forces the token.

The forced token is the first token of the model's own tokenization of the remaining text, so that models with different
tokenizers agree and disagree about tokens as trained ones would. Its probability varies from position to position, so
that either member may win where they tokenize a word differently.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gac_core.tokenization.tokenizer import MemberTokenizer

# Smallest and largest offset of the forced token's logit, for a probability of 0.7 to 0.999.
OFFSETS = (12.0, 18.0)


class Scripted(LlamaForCausalLM):
    """A Llama with random weights that continues any text with the script.

    Args:
        config: Its configuration.
        tokenizer: Its tokenizer as bytes.
        prompt: The beginning of all its prompts.
        script: The text to generate, repeated from the start after its end.
        seed: Seed of the probabilities of the forced tokens.
    """

    def __init__(self, config: LlamaConfig, tokenizer: MemberTokenizer, prompt: str, script: str, seed: int) -> None:
        super().__init__(config)
        self.seed = seed
        self.bytes = tokenizer
        self.skipped = len(tokenizer.decode(tokenizer.encode_prompt(prompt)))
        self.script = script.encode()
        self.ids: list[int] = []
        self.next: dict[int, int] = {}
        self.register_forward_pre_hook(self._follow, with_kwargs=True)
        self.lm_head.register_forward_hook(self._force)

    def _follow(self, module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Stores the ids of the only request."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        positions = kwargs.get("position_ids")
        start = len(self.ids) if positions is None else int(positions[0, 0])
        self.ids[start:] = ids[0].tolist()

    def _force(self, module: Any, args: tuple[Tensor], logits: Tensor) -> Tensor:
        for back in range(logits.shape[1]):
            written = len(self.bytes.decode(self.ids[: len(self.ids) - back])) - self.skipped
            start = max(written, 0) % len(self.script)
            offset = random.Random(f"{self.seed} {start}").uniform(*OFFSETS)
            logits[0, -1 - back, self._following(start)] += offset
        return logits

    def _following(self, start: int) -> int:
        if start not in self.next:
            # If `start` is inside a character, the rest of that character is written in byte tokens.
            part = self.script[start : start + 60]
            while part[:1] and part[0] & 0xC0 == 0x80:
                return self.next.setdefault(start, self.bytes.encode_bytes(part[:1])[0])
            text = part.decode(errors="ignore")
            self.next[start] = (self.bytes.encode_continuation(text) or self.bytes.encode_bytes(part[:1]))[0]
        return self.next[start]


def shape(tokenizer: MemberTokenizer, width: int, layers: int) -> LlamaConfig:
    """Returns the configuration of a Llama of a given width, with heads of 64, for a tokenizer."""
    return LlamaConfig(
        vocab_size=tokenizer.rows,
        hidden_size=width,
        intermediate_size=int(2.75 * width),
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(width // 128, 1),
        max_position_embeddings=8192,
        bos_token_id=tokenizer.hf.bos_token_id,
        eos_token_id=tokenizer.hf.eos_token_id,
        pad_token_id=tokenizer.hf.eos_token_id,
    )


def make(tokenizer: MemberTokenizer, prompt: str, script: str, width: int, layers: int, seed: int) -> Scripted:
    """Returns a scripted model."""
    torch.manual_seed(seed)
    return Scripted(shape(tokenizer, width, layers), tokenizer, prompt, script, seed).eval()
