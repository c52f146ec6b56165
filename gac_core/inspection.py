"""How well tokenizers fit each other: what `gac inspect` shows, as plain data.

Reads tokenizers and configurations, never weights. Word-level agreement is that of GaC, section 3.3 and figure 2.
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

# Bytes that UTF-8 never uses.
_NEVER_IN_UTF8 = frozenset((0xC0, 0xC1, *range(0xF5, 0x100)))
_PROBES = ("one\n\ntwo", "two  spaces", "Caf\u00e9 ", "e\u0301", "\u2126 ohm", "\tindent", "\ufb01")


@dataclass
class MemberReport:
    """What is to know of one member's tokenizer.

    Attributes:
        name: Its name.
        kind: ``"byte-level"`` or ``"sentencepiece"``, by how it spells.
        tokens: Ids that write text.
        rows: Rows of the model's output head, padding rows included.
        shared: Share of its tokens that every other member holds as one id.
        reachable: Share of its tokens that its own encoder gives for their own text, of those that are text alone.
        partial: Tokens that are only parts of characters.
        duplicates: Ids whose bytes another id writes too.
        ends: Its ids that end a text, as it spells them.
        context: The longest text its model can read, in tokens; None if the configuration does not say.
        chat_template: Whether it has one.
        writes_all_bytes: Whether it can write any text.
        unwritable_bytes: The bytes (0 to 255) that none of its tokens writes alone.
        changes: Probe texts that encoding and decoding changes.
        several_ids: Tokens of other members, per 1,000 bytes of the text, that it writes as several ids.
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
    """How well members fit.

    Attributes:
        members: One report each.
        union_size: Entries of the union vocabulary, the end of text included.
        shared_tokens: Byte strings that all members hold as one id.
        words: How many words were compared.
        agreement: Per pair of names the share of words that both cut alike.
        warnings: What is likely to hurt, and what to do about it.
    """

    members: list[MemberReport]
    union_size: int
    shared_tokens: int
    words: int
    agreement: dict[str, float]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as plain values that JSON can hold."""
        return asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A member without its weights.

    Attributes:
        tokenizer: Its tokenizer.
        context: The longest text its model can read, in tokens, if known.
    """

    tokenizer: MemberTokenizer
    context: int | None = None


def load(model: str, trust_remote_code: bool = False) -> Loaded:
    """Loads a member's tokenizer, and its configuration if there is one, by name or folder.

    Raises:
        ModelLoadError: There is no tokenizer of that name.
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
        # A folder with a tokenizer alone is enough to compare vocabularies.
        pass
    name = Path(model).name or model
    return Loaded(MemberTokenizer(tokenizer, name, ends, rows), context)


def common_words(count: int = 5000) -> list[str]:
    """Returns the most frequent English words, from the package wordfreq.

    Raises:
        ConfigError: The package is not installed.
    """
    try:
        from wordfreq import top_n_list
    except ImportError as error:
        raise ConfigError(
            "the default word list needs the package wordfreq: pip install 'gac-ensemble[inspect]', "
            "or give a text or word list of your own with --words FILE"
        ) from error
    return list(top_n_list("en", count))


def words_of(text: str, count: int = 5000) -> list[str]:
    """Returns the most frequent words of a text or of a word list, most frequent first."""
    return [word for word, _ in Counter(text.split()).most_common(count)]


def inspect(members: Sequence[Loaded], words: Sequence[str], text: str | None = None) -> Report:
    """Compares tokenizers.

    Args:
        members: Two or more, or one to look at it alone.
        words: Words whose cuts are compared, each with a space before it.
        text: Text on which commits of several ids are counted; default the words, joined by spaces.

    Raises:
        ConfigError: There is no member, or two have one name.
    """
    tokenizers = [member.tokenizer for member in members]
    names = [tokenizer.name for tokenizer in tokenizers]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"give models with different names, at least one; these are: {names}")
    held = [{data for data in tokenizer.token_bytes if data is not None} for tokenizer in tokenizers]
    union = UnionVocabulary(tokenizers)
    shared = set.intersection(*held)
    reports = [
        _report(member, len(shared & own) / len(own) if own else 0.0) for member, own in zip(members, held, strict=True)
    ]
    cuts = [[_pieces(tokenizer, f" {word}") for word in words] for tokenizer in tokenizers]
    agreement = {
        f"{names[a]} + {names[b]}": sum(x == y for x, y in zip(cuts[a], cuts[b], strict=True)) / max(len(words), 1)
        for a, b in itertools.combinations(range(len(names)), 2)
    }
    _count_several_ids(tokenizers, reports, " ".join(words) if text is None else text)
    return Report(reports, len(union), len(shared), len(words), agreement, _warnings(reports, agreement))


def _report(member: Loaded, shared: float) -> MemberReport:
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
    """The bytes of each token of a text inside another one; None where the tokenizer changes the text."""
    ids = tokenizer.encode_continuation(text)
    return None if ids is None else tuple(tokenizer.decode((i,)) for i in ids)


def _count_several_ids(tokenizers: Sequence[MemberTokenizer], reports: Sequence[MemberReport], text: str) -> None:
    cuts = [[p for line in text.splitlines(True) for p in _pieces(tokenizer, line) or ()] for tokenizer in tokenizers]
    for index, (tokenizer, report) in enumerate(zip(tokenizers, reports, strict=True)):
        others = [pieces for other, pieces in enumerate(cuts) if other != index]
        size = sum(len(piece) for pieces in others for piece in pieces)
        several = sum(
            _can_write(tokenizer, p) and len(tokenizer.encode_bytes(p)) > 1 for pieces in others for p in pieces
        )
        report.several_ids = 1000 * several / size if size else 0.0


def _unwritable(report: MemberReport) -> str:
    """The warning about bytes that a member cannot write."""
    missing = report.unwritable_bytes
    shown = ", ".join(f"0x{value:02X}" for value in missing[:8]) + (", ..." if len(missing) > 8 else "")
    never = len(set(missing) & _NEVER_IN_UTF8)
    rest = f"; {never} of them occur in no valid text" if never else ""
    return (
        f"{report.name} cannot write every text: {len(missing)} of 256 bytes are missing ({shown}{rest}); where the "
        "ensemble writes text that needs one of the others, this member is left out of the rest of the request, or the "
        "request ends with an error if it is the gate; make another member the gate, or use a model whose tokenizer "
        "has byte fallback"
    )


def _warnings(reports: Sequence[MemberReport], agreement: dict[str, float]) -> list[str]:
    found = []
    for report in reports:
        if not report.writes_all_bytes:
            found.append(_unwritable(report))
        if report.changes:
            shown = ", ".join(map(ascii, report.changes))
            found.append(
                f"{report.name} changes text when it encodes it ({shown}): its prompt may differ from the others'; "
                "normalise documents before you put them into a prompt"
            )
        if not report.ends:
            found.append(
                f"{report.name} has no end of text: answers end at max_tokens only unless the others outvote it; "
                "set eos_token_id in its generation config"
            )
        if not report.chat_template:
            found.append(f"{report.name} has no chat template: prompt with strings, or give {REMEDY}")
    for pair, share in agreement.items():
        if share < 0.5:
            found.append(f"{pair} cut only {share:.0%} of the words alike: keep commit='canonical'")
    return found
