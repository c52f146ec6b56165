"""Prompts as members of an ensemble read them: rendered, checked against their contexts, and encoded."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from gac_core.chat.conversation import Conversation, Prompt, as_conversation
from gac_core.chat.rendered_prompt import RenderedPrompt, check_size, render_prompt, uses_native_tools
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.errors import ImageError, listed
from gac_core.tokenization.vision import EncodedPrompt


def encode_prompt(
    prompt: Prompt, members: Rows[EnsembleMember], parse_special: bool
) -> tuple[Conversation | None, list[EncodedPrompt]]:
    """Returns a prompt as a conversation, if it is one, and as each of some members reads it.

    Raises:
        RequestError: The prompt is wrong or too long.
        ImageError: It contains images, and one is damaged or none of the members reads images.
    """
    conversation, rendered = render_for(prompt, members, parse_special, bounded=True)
    return conversation, [each.read() for each in rendered]


def render_for(
    prompt: Prompt, members: Rows[EnsembleMember], parse_special: bool, bounded: bool
) -> tuple[Conversation | None, list[RenderedPrompt]]:
    """Returns a prompt as a conversation, if it is one, and as rendered for each of some members.

    Args:
        prompt: The prompt.
        members: The members.
        parse_special: Whether spellings of control tokens become control tokens.
        bounded: Whether to refuse it where it cannot fit into a context. It is always refused where it is too large to
            be encoded.

    Raises:
        RequestError: The prompt is wrong or too long.
        ImageError: It contains images, and one is damaged or none of the members reads images.
    """
    conversation = as_conversation(prompt)
    source = prompt if conversation is None else conversation
    if conversation is not None:
        _check_seen(conversation, members)
    if conversation is not None or not bounded:
        check_size(source)
    rendered = []
    for member in members:
        native = conversation is not None and uses_native_tools(member.tokenizer, conversation)
        rendered.append(render_prompt(member.tokenizer, source, native, parse_special, member.vision))
    if bounded:
        # All lengths are checked before the first is encoded, which may take long.
        for member, each in zip(members, rendered, strict=True):
            each.check_length(member.context)
        check_size(source)
    return conversation, rendered


def _check_seen(conversation: Conversation, members: Rows[EnsembleMember]) -> None:
    if conversation.images and not any(member.reads_images for member in members):
        names = listed([member.name for member in members])
        raise ImageError(
            f"the conversation contains images, and none of the members that take part can read them: {names}; add a "
            "vision-language model to the ensemble (Ensemble.vision_members has those that read images), or leave the "
            "images out"
        )
