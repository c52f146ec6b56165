"""Invented handbook world: passages, questions and answers for the tiny demo members.

Every name is put together from syllables and every fact is drawn at random, so an answer can only be copied
from the passages. A name is either a training name or a held-out name, decided by a hash of the full name.
"""

from __future__ import annotations

import json
import random
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_TOLD = "The passages do not say."
SYSTEM = "Answer the question from the passages. If the passages do not tell, say so."
MISSING_RATE = 0.15
FILLER_RATE = 0.25
ALIKE_RATE = 0.6

_WORLD = json.loads((Path(__file__).parent / "handbook.json").read_text(encoding="utf-8"))
_STARTS: list[str] = _WORLD["starts"]
_ENDS: list[str] = _WORLD["ends"]
_FILLERS: list[str] = _WORLD["fillers"]
_CHOICES: dict[str, list[str]] = _WORLD["choices"]
_NAME = re.compile(rf"\b({'|'.join(_STARTS)})({'|'.join(_ENDS)})\b")

# kind -> relation -> {"value": value type, "sentences": [...], "questions": [...]}; {s} is the subject, {v} the value.
# An answer is the first of the sentences; a passage has any of them.
_KINDS: dict[str, dict[str, dict[str, Any]]] = _WORLD["kinds"]


@dataclass(frozen=True)
class Example:
    """One question over a few passages.

    Attributes:
        passages: The paragraphs given with the question, in the order shown.
        question: The question.
        answer: One sentence with words copied from a passage, or ``NOT_TOLD``.
        relation: What is asked, such as ``"founder"``.
    """

    passages: tuple[str, ...]
    question: str
    answer: str
    relation: str


@dataclass(frozen=True)
class _Entity:
    kind: str
    name: str
    facts: dict[str, str]
    passage: str


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % 8 == 0


def _name(rng: random.Random, kind: str, held_out: bool) -> str:
    """Draw a name of the wanted half of the name space."""
    while True:
        word = rng.choice(_STARTS) + rng.choice(_ENDS)
        if kind == "Person":
            word += " " + rng.choice(_STARTS) + rng.choice(_ENDS)
        elif kind != "town":
            word += " " + kind
        if _is_held_out(word) == held_out:
            return word


def _value(rng: random.Random, value_type: str, held_out: bool) -> str:
    if value_type in ("town", "person"):
        return _name(rng, value_type.capitalize() if value_type == "person" else "town", held_out)
    if value_type == "year":
        return str(rng.randint(1700, 1999))
    if value_type == "price":
        return f"{rng.randint(2, 99)} crowns"
    if value_type == "hour":
        return f"{rng.randint(6, 23)}:{rng.choice(('00', '15', '30', '45'))}"
    if value_type == "length":
        return f"{rng.randint(20, 990)} metres"
    return rng.choice(_CHOICES[value_type])


def _subject(kind: str, name: str) -> str:
    return name if kind == "Person" else f"the {name}"


def _sentence(form: str, subject: str, value: str) -> str:
    text = form.format(s=subject, v=value)
    return text[0].upper() + text[1:]


def _entity(rng: random.Random, kind: str, held_out: bool, told: list[str] | None = None) -> _Entity:
    """Draw an entity with two to four facts, or with the facts ``told`` and nothing else, and write its paragraph."""
    relations = _KINDS[kind]
    chosen = told or rng.sample(sorted(relations), rng.randint(2, 4))
    name = _name(rng, kind, held_out)
    facts = {relation: _value(rng, relations[relation]["value"], held_out) for relation in chosen}
    sentences = [
        _sentence(rng.choice(relations[relation]["sentences"]), _subject(kind, name), facts[relation])
        for relation in chosen
    ]
    if told is None and rng.random() < FILLER_RATE:
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(_FILLERS))
    return _Entity(kind, name, facts, " ".join(sentences))


def _entities(rng: random.Random, count: int, held_out: bool, facts_only: int = 0) -> list[_Entity]:
    """Draw distinct entities, most of them of one kind, so that distractors look alike."""
    main = rng.choice(sorted(_KINDS))
    told = rng.sample(sorted(_KINDS[main]), facts_only) or None
    found: dict[str, _Entity] = {}
    while len(found) < count:
        kind = main if told or rng.random() < ALIKE_RATE else rng.choice(sorted(_KINDS))
        entity = _entity(rng, kind, held_out, told)
        found.setdefault(entity.name, entity)
    return list(found.values())


def _ask(
    rng: random.Random, entities: list[_Entity], held_out: bool, weights: Mapping[str, float], missing: bool
) -> tuple[str, str, str]:
    """Draw (question, answer, relation) over the entities."""
    entity = rng.choice(entities)
    relations = _KINDS[entity.kind]
    name, options = entity.name, sorted(entity.facts)
    if missing:
        options = sorted(set(relations) - set(entity.facts))
        if not options or rng.random() < 0.5:
            options = sorted(relations)
            while name in {known.name for known in entities}:
                name = _name(rng, entity.kind, held_out)
    relation = rng.choices(options, [weights.get(option, 1.0) for option in options])[0]
    subject = _subject(entity.kind, name)
    question = rng.choice(relations[relation]["questions"]).format(s=subject)
    if missing:
        return question, NOT_TOLD, relation
    return question, _sentence(relations[relation]["sentences"][0], subject, entity.facts[relation]), relation


def draw_group(
    rng: random.Random,
    passages: int,
    questions: int,
    held_out: bool = False,
    weights: Mapping[str, float] | None = None,
    facts_only: int = 0,
) -> list[Example]:
    """Draw several examples over the same passages.

    Args:
        rng: Source of randomness.
        passages: Number of passages.
        questions: Number of examples.
        held_out: Whether names come from the held-out half of the name space.
        weights: How often a relation is asked, relative to 1.
        facts_only: Facts in a passage, the same for all, every question told; 0 for two to four that differ, fillers,
            and some questions not told.

    Returns:
        The examples, all with the same passages.
    """
    entities = _entities(rng, passages, held_out, facts_only)
    texts = tuple(entity.passage for entity in entities)
    rate = 0.0 if facts_only else MISSING_RATE
    return [
        Example(texts, *_ask(rng, entities, held_out, weights or {}, rng.random() < rate)) for _ in range(questions)
    ]


def syllable_cut(text: str) -> list[str]:
    """Cut a text inside its names, so that a tokenizer trained on the parts learns syllables."""
    return _NAME.sub("\\1\0\\2", text).split("\0")


def train_examples(seed: int, max_passages: int = 4, weights: Mapping[str, float] | None = None) -> Iterator[Example]:
    """Yield training examples without end.

    Args:
        seed: Seed of the stream.
        max_passages: Most passages in an example.
        weights: How often a relation is asked, relative to 1.

    Yields:
        Examples over training names only.
    """
    rng = random.Random(seed)
    while True:
        yield draw_group(rng, rng.randint(1, max_passages), 1, False, weights)[0]


def held_out(n: int, seed: int = 0) -> list[Example]:
    """Return ``n`` examples of one to four passages whose names never occur in training."""
    rng = random.Random(f"held-out {seed}")
    return [draw_group(rng, rng.randint(1, 4), 1, True)[0] for _ in range(n)]


def render_messages(example: Example, layout: str = "main") -> list[dict[str, str]]:
    """Render an example as chat messages.

    Args:
        example: The example; its answer is not used.
        layout: ``"main"`` (system and user message) or ``"context"`` (user message only).

    Returns:
        Messages for ``apply_chat_template``.

    Raises:
        ValueError: If the layout is unknown.
    """
    if layout == "main":
        user = "Passages:\n\n" + "\n\n".join(example.passages) + f"\n\nQuestion: {example.question}"
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]
    if layout == "context":
        user = "Context:\n" + "\n".join(example.passages) + f"\n\nQuestion: {example.question}\nAnswer:"
        return [{"role": "user", "content": user}]
    raise ValueError(f"unknown layout: {layout!r}")


def answers_match(prediction: str, gold: str) -> bool:
    """Whether two answers agree but for outer white space, case and closing punctuation."""
    return _normal(prediction) == _normal(gold)


def _normal(text: str) -> str:
    return text.strip().casefold().rstrip(".,;:!? \n")


def write_handbook(folder: Path, seed: int = 0) -> list[tuple[str, str]]:
    """Write a small handbook of held-out entities.

    Args:
        folder: Where the topic files (``museums.md`` and so on) go; made if need be.
        seed: Seed of the entities.

    Returns:
        Twelve (question, gold answer) pairs; the handbook does not answer the last two.
    """
    rng = random.Random(f"handbook {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    topics: dict[str, list[_Entity]] = {kind: [] for kind in _KINDS}
    words: set[str] = set()
    for kind, entities in topics.items():
        while len(entities) < 8:
            entity = _entity(rng, kind, True)
            if words.isdisjoint(entity.name.split()[: 2 if kind == "Person" else 1]):
                words.update(entity.name.split()[: 2 if kind == "Person" else 1])
                entities.append(entity)
        title = "people" if kind == "Person" else kind.lower() + "s"
        text = "\n\n".join(entity.passage for entity in entities) + "\n"
        (folder / f"{title}.md").write_text(text, encoding="utf-8")
    pairs = []
    for kind in (*_KINDS, *_KINDS):
        question, answer, _ = _ask(rng, [topics[kind].pop()], True, {}, False)
        pairs.append((question, answer))
    for kind in ("Inn", "Museum"):
        lacking = next(entity for entity in topics[kind] if len(entity.facts) < len(_KINDS[kind]))
        relation = min(set(_KINDS[kind]) - set(lacking.facts))
        pairs.append((_KINDS[kind][relation]["questions"][0].format(s=_subject(kind, lacking.name)), NOT_TOLD))
    return pairs
