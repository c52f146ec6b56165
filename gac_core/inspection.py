"""Comparison of tokenizers: the data behind `gac inspect`.

Loads tokenizers and configurations, never weights. Word-level agreement is defined as in GaC, section 3.3, figure 2.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gac_core.errors import ConfigError, UnwritableTextError
from gac_core.model.places import check_folder, load_error
from gac_core.templates.plain import REMEDY
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

# Bytes that occur in no valid UTF-8.
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
_PROBES = ("one\n\ntwo", "two  spaces", "Caf\u00e9 ", "e\u0301", "\u2126 ohm", "\tindent", "\ufb01")


@dataclass
class MemberReport:
    """Properties of one member's tokenizer.

    Attributes:
        name: Name of the member.
        kind: Spelling of its tokens, ``"byte-level"`` or ``"sentencepiece"``.
        tokens: Number of ids that stand for text.
        rows: Rows of the model's output head, padding rows included.
        shared: Share of its tokens that are one token in every other member, 0 to 1.
        reachable: Of the tokens that are valid text, the share that its encoder returns for that text, 0 to 1.
        partial: Number of tokens that hold incomplete UTF-8 characters.
        duplicates: Number of ids with the same bytes as another id.
        ends: Its end-of-text tokens.
        context: Context of its model, in tokens; None if the configuration does not say.
        chat_template: Whether it has a chat template.
        writes_all_bytes: Whether it can encode every text.
        unwritable_bytes: The bytes (0 to 255) that none of its tokens stands for.
        changes: Probe texts that encoding and decoding does not preserve.
        several_ids: Tokens of other members that it needs several ids for, per 1,000 bytes of text.
    """

    name: str
    kind: str
    tokens: int
    rows: int
    shared: float
    reachable: float
    partial: int
    duplicates: int
    ends: list[str]
    context: int | None
    chat_template: bool
    writes_all_bytes: bool
    unwritable_bytes: list[int]
    changes: list[str]
    several_ids: float = 0.0


@dataclass
class Report:
    """Comparison of the members' tokenizers.

    Attributes:
        members: One report per member.
        union_size: Entries of the union vocabulary, the end of text included.
        shared_tokens: Number of byte strings that are one token in every member.
        words: Number of words compared.
        agreement: Share of words that two members tokenize alike, 0 to 1, by pair of names (``"a + b"``).
        warnings: Likely problems, each with a remedy.
    """

    members: list[MemberReport]
    union_size: int
    shared_tokens: int
    words: int
    agreement: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-compatible values."""
        return asdict(self)


@dataclass(frozen=True)
class LoadedTokenizer:
    """The tokenizer of a member.

    Attributes:
        tokenizer: The tokenizer.
        context: Context of its model, in tokens; None if unknown.
    """

    tokenizer: MemberTokenizer
    context: int | None = None


def load(model: str, trust_remote_code: bool = False) -> LoadedTokenizer:
    """Loads a tokenizer, and its model's configuration if it has one.

    Args:
        model: Folder or hub name.
        trust_remote_code: Whether to run code from the model's repository. Default False.

    Raises:
        ModelLoadError: The tokenizer cannot be loaded.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    check_folder(model, model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise load_error(model, error) from error
    rows = context = None
    ends: list[int] = []
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config(decoder=True)
        rows, context = getattr(config, "vocab_size", None), getattr(config, "max_position_embeddings", None)
        given = getattr(GenerationConfig.from_pretrained(model), "eos_token_id", None)
        ends = [] if given is None else [given] if isinstance(given, int) else list(given)
    except (OSError, ValueError):
        # The configuration is optional: a folder may hold a tokenizer alone.
        pass
    name = Path(model).name or model
    return LoadedTokenizer(MemberTokenizer(tokenizer, name, ends, rows), context)


def common_words(count: int = 5000) -> list[str]:
    """Returns the ``count`` most frequent English words, from the package wordfreq.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise ConfigError(
            "the default word list needs the package wordfreq: pip install 'gac-ensemble[inspect]', "
            "or pass your own text or word list with --words FILE"
        ) from error
    return list(top_n_list("en", count))


def words_of(text: str, count: int = 5000) -> list[str]:
    """Returns the ``count`` most frequent words of a text or word list, most frequent first."""
    return [word for word, _ in Counter(text.split()).most_common(count)]


def inspect(members: Sequence[LoadedTokenizer], words: Sequence[str], text: str | None = None) -> Report:
    """Compares tokenizers.

    Args:
        members: One or more tokenizers with different names.
        words: Words whose tokenization is compared, each with a leading space.
        text: Text for `MemberReport.several_ids`. Default None: the words, joined by spaces.

    Raises:
        ConfigError: ``members`` is empty, or two names are equal.
    """
    tokenizers = [member.tokenizer for member in members]
    names = [tokenizer.name for tokenizer in tokenizers]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"models must have different names, and there must be at least one; got {names}")
    held = [{data for data in tokenizer.token_bytes if data is not None} for tokenizer in tokenizers]
    union = UnionVocabulary(tokenizers)
    shared = set.intersection(*held)
    reports = [
        _report(member, len(shared & own) / len(own) if own else 0.0) for member, own in zip(members, held, strict=True)
    ]
    splits = [pieces_of(tokenizer, [f" {word}" for word in words]) for tokenizer in tokenizers]
    agreement = {
        f"{names[a]} + {names[b]}": share_cut_alike(splits[a], splits[b])
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    _count_several_ids(tokenizers, reports, " ".join(words) if text is None else text)
    return Report(reports, len(union), len(shared), len(words), agreement, _warnings(reports, agreement))


def pieces_of(tokenizer: MemberTokenizer, texts: Sequence[str]) -> list[tuple[bytes, ...] | None]:
    """Returns the tokens of each text, as bytes, as the tokenizer cuts it in the middle of a longer text.

    None stands for a text that the tokenizer does not preserve.
    """
    return [_pieces(tokenizer, text) for text in texts]


def share_cut_alike(first: Sequence[tuple[bytes, ...] | None], second: Sequence[tuple[bytes, ...] | None]) -> float:
    """Returns the share of texts that two tokenizers cut into the same tokens, 0 to 1.

    Args:
        first: One tokenizer's `pieces_of`.
        second: The other's, of the same texts. A text that a tokenizer does not preserve counts as cut differently.
    """
    return sum(a is not None and a == b for a, b in zip(first, second, strict=True)) / max(len(first), 1)


def _report(member: LoadedTokenizer, shared: float) -> MemberReport:
    tokenizer = member.tokenizer
    counts = Counter(data for data in tokenizer.token_bytes if data is not None)
    own = {i: data for i, data in enumerate(tokenizer.token_bytes) if data is not None}
    texts = {i: data.decode() for i, data in own.items() if _is_text(data)}
    reached = sum(tokenizer.encode_continuation(text) == (i,) for i, text in texts.items())
    return MemberReport(
        name=tokenizer.name,
        kind="byte-level" if tokenizer.byte_level else "sentencepiece",
        tokens=len(own),
        rows=tokenizer.rows,
        shared=shared,
        reachable=reached / max(len(texts), 1),
        partial=len(own) - len(texts),
        duplicates=sum(count - 1 for count in counts.values()),
        ends=[str(tokenizer.hf.convert_ids_to_tokens(i)) for i in sorted(tokenizer.end_ids)],
        context=member.context,
        chat_template=bool(tokenizer.hf.chat_template),
        writes_all_bytes=not tokenizer.unwritable_bytes,
        unwritable_bytes=list(tokenizer.unwritable_bytes),
        changes=[probe for probe in _PROBES if tokenizer.encode_continuation(probe) is None],
    )


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _can_write(tokenizer: MemberTokenizer, data: bytes) -> bool:
    try:
        tokenizer.encode_bytes(data)
    except UnwritableTextError:
        return False
    return True


def _pieces(tokenizer: MemberTokenizer, text: str) -> tuple[bytes, ...] | None:
    """Returns the bytes of each token of a text within a longer text; None if the tokenizer does not preserve it."""
    ids = tokenizer.encode_continuation(text)
    return None if ids is None else tuple(tokenizer.decode((i,)) for i in ids)


def _count_several_ids(tokenizers: Sequence[MemberTokenizer], reports: Sequence[MemberReport], text: str) -> None:
    splits = [[p for line in text.splitlines(True) for p in _pieces(tokenizer, line) or ()] for tokenizer in tokenizers]
    for index, (tokenizer, report) in enumerate(zip(tokenizers, reports, strict=True)):
        others = [pieces for other, pieces in enumerate(splits) if other != index]
        size = sum(len(piece) for pieces in others for piece in pieces)
        several = sum(
            _can_write(tokenizer, p) and len(tokenizer.encode_bytes(p)) > 1 for pieces in others for p in pieces
        )
        report.several_ids = 1000 * several / size if size else 0.0


def _unwritable(report: MemberReport) -> str:
    """Returns the warning about bytes that a member cannot encode."""
    missing = report.unwritable_bytes
    shown = ", ".join(f"0x{value:02X}" for value in missing[:8]) + (", ..." if len(missing) > 8 else "")
    never = len(set(missing) & _NEVER_IN_UTF8)
    rest = f"; {never} of them occur in no valid text" if never else ""
    return (
        f"{report.name} cannot encode every text: {len(missing)} of 256 bytes are missing ({shown}{rest}). If the "
        "answer contains a missing byte, this member is left out of the rest of the request; if it is the gate, the "
        "request fails. Make another member the gate, or use a model whose tokenizer has byte fallback"
    )


def _warnings(reports: Sequence[MemberReport], agreement: dict[str, float]) -> list[str]:
    found = []
    for report in reports:
        if not report.writes_all_bytes:
            found.append(_unwritable(report))
        if report.changes:
            shown = ", ".join(map(ascii, report.changes))
            found.append(
                f"{report.name} does not preserve text when encoding ({shown}): its prompt may differ from others'; "
                "normalise documents before you put them into a prompt"
            )
        if not report.ends:
            found.append(
                f"{report.name} has no end-of-text token: where it has the majority of the weight, answers end only at "
                "max_tokens; set eos_token_id in its generation config"
            )
        if not report.chat_template:
            found.append(f"{report.name} has no chat template: use string prompts, or give {REMEDY}")
    for pair, share in agreement.items():
        if share < 0.5:
            found.append(f"{pair} tokenize only {share:.0%} of the words alike: keep commit='canonical'")
    return found
