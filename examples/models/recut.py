"""Give each trained member a vocabulary of its own.

The members learn to copy with tokenizers that cut words almost alike, which is quick. This step then trains each
tokenizer anew on text in which a different tenth of the words and syllables is cut in two, so that a member lacks pieces
that the others hold, and keeps the embeddings of all pieces that stay. Run it between ``train.py --member NAME`` and
``train.py --member NAME --more``, once for all three.
"""

from __future__ import annotations

import itertools
import re
import zlib
from pathlib import Path

import torch
from handbook import SYSTEM, syllable_cut, train_examples
from tokenizing import build_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
MEMBERS = ("ash", "birch", "cedar")
_WORD = re.compile("[A-Za-z]{3,}")


def own_cut(member: str, text: str) -> list[str]:
    """Cut a text inside its names, and inside the words that this member does not hold whole."""

    def cut(match: re.Match[str]) -> str:
        word = match[0]
        if zlib.crc32(word.lower().encode()) % 10 != MEMBERS.index(member):
            return word
        half = len(word) // 2
        return f"{word[:half]}\0{word[half:]}"

    return [part for piece in syllable_cut(text) for part in _WORD.sub(cut, piece).split("\0")]


@torch.no_grad()
def recut(member: str, texts: list[str]) -> tuple[int, int]:
    """Replace a member's tokenizer and keep what its embeddings know.

    Args:
        member: The member.
        texts: Training text.

    Returns:
        How many pieces were kept, and how many are new.
    """
    model = AutoModelForCausalLM.from_pretrained(HERE / member, dtype=torch.float32)
    old = AutoTokenizer.from_pretrained(HERE / member).get_vocab()
    tokenizer = build_tokenizer(member, [part for text in texts for part in own_cut(member, text)])
    new = tokenizer.get_vocab()
    table = model.get_input_embeddings().weight.clone()
    torch.manual_seed(0)
    fresh = torch.randn(len(new), table.shape[1]) * table.std()
    kept = [piece for piece in new if piece in old]
    fresh[[new[piece] for piece in kept]] = table[[old[piece] for piece in kept]]
    model.resize_token_embeddings(len(new))
    model.get_input_embeddings().weight.copy_(fresh)
    model.tie_weights()
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.bos_token_id = tokenizer.bos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    tokenizer.save_pretrained(HERE / member, save_jinja_files=False)
    model.to(torch.bfloat16).save_pretrained(HERE / member)
    return len(kept), len(new) - len(kept)


def main() -> None:
    """Recut the three members."""
    frame = [SYSTEM, "Passages:\n\n", "Context:\n", "\n\nQuestion:", "\nAnswer:", "system\nuser\nassistant\n"]
    texts = frame * 200
    for example in itertools.islice(train_examples(1), 6000):
        texts += [*example.passages, example.question, *[example.answer] * 3]
    for member in MEMBERS:
        kept, new = recut(member, texts)
        print(f"{member}: {kept} pieces kept, {new} new")


if __name__ == "__main__":
    main()
