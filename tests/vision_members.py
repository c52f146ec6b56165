"""Members that read images, made of `vision_models`, and what transformers answers with their processors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from PIL import ImageDraw
from reference import PlainMember
from torch.nn import functional
from vision_models import KINDS

from gac_core import Ensemble, EnsembleConfig, Image, MemberConfig
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.member import Member


@dataclass(frozen=True)
class VisionMember:
    """A vision-language member.

    Attributes:
        folder: Where it is saved.
        model: The model, of transformers, in float32.
        processor: Its processor, with its tokenizer.
    """

    folder: str
    model: Any
    processor: Any

    def member(self, name: str, **options: Any) -> Member:
        """A member with a KV cache of its own; ``options`` as in `Member.from_model`."""
        return Member.from_model(self.model, self.processor.tokenizer, name, processor=self.processor, **options)

    def inputs(self, messages: Sequence[dict[str, Any]]) -> Any:
        """A conversation as the processor of transformers gives it to the model."""
        turns = [{"role": each["role"], "content": _parts(each["content"])} for each in messages]
        return self.processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )

    @torch.no_grad()
    def plain_answer(self, messages: Sequence[dict[str, Any]], tokens: int, **settings: Any) -> str:
        """What transformers' own `generate` writes, greedily and in tokens of text, with the processor."""
        tokenizer = self.processor.tokenizer
        inputs = self.inputs(messages)
        silent = [index for index in tokenizer.added_tokens_decoder if index != tokenizer.eos_token_id]
        settings = {"max_new_tokens": tokens, "do_sample": False, "suppress_tokens": silent, **settings}
        ids = self.model.generate(**inputs, **settings)
        written = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return tokenizer.decode(written, skip_special_tokens=True)


class PlainSeeing(PlainMember):
    """A vision-language member in float64, for `reference.generate`."""

    def __init__(self, member: VisionMember) -> None:
        super().__init__(member.model, member.processor.tokenizer)
        self._member = member

    def prompt(self, prompt) -> list[int]:
        inputs = dict(self._member.inputs(prompt))
        (ids,) = inputs.pop("input_ids").tolist()
        del inputs["attention_mask"]
        self._types = {name: inputs.pop(name) for name in list(inputs) if name.endswith("token_type_ids")}
        self._images = {name: each.double() if each.is_floating_point() else each for name, each in inputs.items()}
        return ids

    @torch.no_grad()
    def logits(self, text: list[int]) -> torch.Tensor:
        types = {name: functional.pad(each, (0, len(text) - each.shape[1])) for name, each in self._types.items()}
        return self.model(torch.tensor([text]), **self._images, **types, use_cache=False).logits[0, -1]


class PlainBlind(PlainMember):
    """A member that reads the text of a conversation, for `reference.generate`."""

    def prompt(self, prompt) -> list[int]:
        return super().prompt([{**each, "content": text_of(each["content"])} for each in prompt])


def text_of(content: Any) -> str:
    """The text of a message alone."""
    return "".join(part for part in content if isinstance(part, str))


def _parts(content: Any) -> list[dict[str, Any]]:
    parts = [content] if isinstance(content, str) else content
    return [
        {"type": "image", "image": part.pixels()} if isinstance(part, Image) else {"type": "text", "text": part}
        for part in parts
    ]


@functools.cache
def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image:
    """A picture of coloured rectangles."""
    draw = torch.Generator().manual_seed(seed)
    canvas = Pillow.new("RGB", size)
    brush = ImageDraw.Draw(canvas)
    for _ in range(6):
        x, y, red, green, blue = torch.randint(0, 256, (5,), generator=draw).tolist()
        brush.rectangle((x % size[0], y % size[1], size[0], size[1]), fill=(red, green, blue))
    return Image.open(canvas)


def made_member(kind: str, folder: Path) -> VisionMember:
    """A member of `KINDS`, saved to a folder and loaded as any checkpoint is."""
    torch.manual_seed(7)
    KINDS[kind](folder)
    found = Checkpoint.find(MemberConfig(str(folder), dtype="float32", device="cpu"))
    processor = found.load_processor()
    found.load_tokenizer(processor)
    return VisionMember(str(folder), found.load_model().eval(), processor)


@pytest.fixture(scope="session")
def vision_members(tmp_path_factory) -> Callable[[str], VisionMember]:
    """Returns a member of `KINDS` by its kind; made once per session when it is first asked for."""
    return functools.cache(lambda kind: made_member(kind, tmp_path_factory.mktemp(kind)))


def ensemble_of(*members: Member, **settings) -> Ensemble:
    """An ensemble of loaded members."""
    configs = tuple(MemberConfig(member.name) for member in members)
    return Ensemble(list(members), EnsembleConfig(configs, **settings))


def asked(*content) -> list[dict[str, Any]]:
    """A conversation of one message with texts and images."""
    return [{"role": "user", "content": list(content)}]
