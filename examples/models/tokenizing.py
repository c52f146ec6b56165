"""The three members' tokenizers: byte-level BPE, BPE with byte fallback, Unigram with byte fallback."""

from __future__ import annotations

import json
import math
import re
import string
import zlib
from collections import Counter
from collections.abc import Iterable

from handbook import syllable_cut
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_BYTES = [f"<0x{value:02X}>" for value in range(256)]
_WORD = re.compile("[A-Za-z]{3,}")
_ALPHABET = sorted(set(string.ascii_letters + string.digits + string.punctuation + "\n▁"))

_CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_INST = (
    "<s>{% for message in messages %}{% if message['role'] == 'system' %}<<SYS>>\n{{ message['content'] }}\n"
    "<</SYS>>\n{% elif message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]\n"
    "{% else %}{{ message['content'] }}</s>{% endif %}{% endfor %}"
)
_TAGS = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def own_cut(text: str, member: int) -> list[str]:
    """Cut a text inside its names, and inside the tenth of the words that this member is not to hold whole.

    Args:
        text: Training text.
        member: Which tenth, 0 to 9; a different one per member, so that each lacks pieces that the others hold.

    Returns:
        The parts; joined they are the text.
    """

    def cut(match: re.Match[str]) -> str:
        word = match[0]
        if zlib.crc32(word.lower().encode()) % 10 != member:
            return word
        half = len(word) // 2
        return f"{word[:half]}\0{word[half:]}"

    return [part for piece in syllable_cut(text) for part in _WORD.sub(cut, piece).split("\0")]


def _splits() -> list[pre_tokenizers.PreTokenizer]:
    """Digits, line breaks and punctuation marks stand alone in every tokenizer."""
    return [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex("\n"), "isolated"),
        pre_tokenizers.Punctuation("isolated"),
    ]


def _byte_level(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_splits(), to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer


def _with_spaces(tokenizer: Tokenizer) -> Tokenizer:
    space = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([space, *_splits()])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _fallback_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = _with_spaces(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(vocab_size=size - 257, initial_alphabet=_ALPHABET, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    state = json.loads(tokenizer.to_str())["model"]
    pieces = ["<unk>", *_BYTES, *sorted(state["vocab"], key=state["vocab"].get)]
    merges = [tuple(merge) for merge in state["merges"]]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    tokenizer.model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    return tokenizer


def _unigram(texts: Iterable[str], size: int) -> Tokenizer:
    """Score the pieces of a BPE by how often they occur: steadier than EM on so small a corpus."""
    corpus = list(texts)
    tokenizer = _with_spaces(Tokenizer(models.BPE()))
    trainer = trainers.BpeTrainer(vocab_size=size - 257, initial_alphabet=_ALPHABET, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    counts: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(corpus):
        counts.update(encoding.tokens)
    total = math.log(sum(counts.values()))
    vocab = [("<unk>", -30.0)]
    vocab += [(piece, math.log(counts[piece] + 0.01) - total) for piece in sorted(tokenizer.get_vocab())]
    vocab += [(piece, -40.0) for piece in _BYTES]
    tokenizer.model = models.Unigram(vocab, unk_id=0, byte_fallback=True)
    return tokenizer


def build_tokenizer(member: str, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a member's tokenizer.

    Args:
        member: ``"ash"``, ``"birch"`` or ``"cedar"``.
        texts: Training text.

    Returns:
        The tokenizer with its special tokens and chat template.
    """
    if member == "ash":
        core, specials = _byte_level(texts, 1000), ["<|pad|>", "<|im_start|>", "<|im_end|>"]
        names = {"pad_token": "<|pad|>", "eos_token": "<|im_end|>"}
        template = _CHATML
    elif member == "birch":
        core, specials = _fallback_bpe(texts, 1100), ["<pad>", "<s>", "</s>"]
        names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        template = _INST
    else:
        core = _unigram(texts, 1100)
        specials = ["<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
        names = {"pad_token": "<pad>", "eos_token": "<|end|>", "unk_token": "<unk>"}
        template = _TAGS
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        chat_template=template,
        model_max_length=1024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **names,
    )
