"""Checks that a model, its tensors and its tokenizer belong together and can be used."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from gac_core.errors import ChatTemplateError, ConfigError, GaCError, ModelLoadError, quote, shorten
from gac_core.templates.rendering import apply_template
from gac_core.tokenization.tokenizer import MemberTokenizer

logger = logging.getLogger(__name__)

MAX_NAMES = 4
"""Names of tensors that an error lists at most."""


def check_architecture(
    name: str, architecture: Any, trust_remote_code: bool = False, reads_images: bool = False
) -> None:
    """Raises unless transformers can load a model as a causal language model, or as one that reads images.

    Args:
        name: The model, for errors.
        architecture: Its configuration.
        trust_remote_code: Whether the model's own code may define its class.
        reads_images: Whether it is loaded as a vision-language model. Default False.

    Raises:
        ModelLoadError: It is another kind of model, such as one for embeddings or classification.
    """
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if (
        not reads_images
        and trust_remote_code
        and "AutoModelForCausalLM" in (getattr(architecture, "auto_map", None) or {})
    ):
        return
    named = architecture.architectures or ()
    if not isinstance(named, (list, tuple)) or not all(isinstance(each, str) for each in named):
        raise ModelLoadError(
            name, f"the architectures of its config.json must be a list of names of classes, not {quote(named)}"
        )
    classes = list(named)
    loadable = reads_images or type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING
    known = _generating_classes(with_images=reads_images)
    # Classes that transformers does not have are ignored: the tensors show whether the model fits.
    others = [each for each in classes if each not in known and hasattr(transformers, each)]
    if loadable and (not classes or len(others) < len(classes)):
        return
    kind = ", ".join(classes) or f"model type {architecture.model_type!r}"
    if not reads_images and type(architecture) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise ModelLoadError(
            name,
            f"its architecture, {kind}, reads images and text, which needs a model without encoder of text and its "
            "processor: preprocessor_config.json or processor_config.json in its folder; add these files with the "
            "processor's save_pretrained",
        )
    raise ModelLoadError(
        name,
        f"its architecture, {kind}, is not a causal language model of transformers; give a model that generates text "
        "(its class ends in ForCausalLM or LMHeadModel)",
    )


def _generating_classes(with_images: bool) -> set[str]:
    """The names of transformers' causal language models; or of those with images as well."""
    from transformers.models.auto import modeling_auto as auto

    mappings = [auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if with_images:
        mappings.append(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    values = [names for mapping in mappings for names in mapping.values()]
    return {name for names in values for name in ([names] if isinstance(names, str) else names)}


def member_tokenizer(name: str, tokenizer: Any, ends: Iterable[int], rows: int) -> MemberTokenizer:
    """Returns a tokenizer at the level of bytes.

    Args:
        name: The member's name, for errors.
        tokenizer: The tokenizer, of transformers.
        ends: Ids that end a text, as in `MemberTokenizer`.
        rows: Rows of the model's output head.

    Raises:
        ModelLoadError: Its files are damaged.
        ChatTemplateError: Its chat template exceeds the limits of computation.
    """
    longest = getattr(tokenizer, "model_max_length", 0)
    if isinstance(longest, bool) or not isinstance(longest, (int, float)):
        raise ModelLoadError(
            name, f"the model_max_length of its tokenizer_config.json must be a number, not {quote(longest)}"
        )
    template = getattr(tokenizer, "chat_template", None)
    texts = list(template.values()) if isinstance(template, Mapping) else [template]
    if template is not None and not all(isinstance(text, str) for text in texts):
        raise ModelLoadError(
            name, f"its tokenizer's chat_template must be a Jinja template, or several by name, not {quote(template)}"
        )
    try:
        return MemberTokenizer(tokenizer, name, ends, rows)
    except GaCError:
        raise
    except Exception as error:
        # transformers does not check these files and may raise anything.
        raise ModelLoadError(
            name,
            f"its tokenizer cannot be used: {type(error).__name__}: {shorten(str(error))}; its tokenizer.json or "
            "tokenizer_config.json is damaged, download or save it again",
        ) from error


def check_chat_template(name: str, tokenizer: Any) -> None:
    """Raises unless the chat template of a member's settings renders a question, in either form of its content.

    Args:
        name: The member's name, for errors.
        tokenizer: The tokenizer, of transformers, with this template.

    Raises:
        ConfigError: It does not.
        ChatTemplateError: It exceeds the limits of computation.
    """
    reasons = []
    for content in ("Hello", [{"type": "text", "text": "Hello"}]):
        try:
            apply_template(tokenizer, name, [{"role": "user", "content": content}], generation_prompt=True)
            return
        except ChatTemplateError:
            raise
        except Exception as error:
            # Templates may raise anything.
            reasons.append(f"{type(error).__name__}: {shorten(str(error))}")
    raise ConfigError(
        f"the chat_template of member {quote(name)} cannot render a user message ({reasons[0]}); correct the Jinja "
        "template, or leave it out to use the model's own"
    )


def check_tensors(name: str, kind: str, info: Mapping[str, Collection[Any]]) -> None:
    """Raises unless a checkpoint has exactly the tensors of its model.

    Args:
        name: The model, for errors.
        kind: The model's class.
        info: The loading info of ``from_pretrained``, which omits tied and ignorable tensors.

    Raises:
        ModelLoadError: Tensors are missing, unexpected or of another shape.
    """
    shapes = [
        f"{tensor} ({list(stored)} in the file, {list(wanted)} in the model)"
        for tensor, stored, wanted in sorted(info["mismatched_keys"])
    ]
    found = {
        "are missing": sorted(info["missing_keys"]),
        "are not of this model": sorted(info["unexpected_keys"]),
        "have another shape": shapes,
    }
    reasons = [
        f"{len(names)} {what}: {', '.join(names[:MAX_NAMES])}{', ...' if len(names) > MAX_NAMES else ''}"
        for what, names in found.items()
        if names
    ]
    if reasons:
        raise ModelLoadError(
            name,
            f"its weights do not match its architecture {kind}: of the tensors {'; '.join(reasons)}. The files are "
            "incomplete or belong to another config.json; download or save the model again",
        )


def check_tokenizer(name: str, model: Any, tokenizer: Any) -> None:
    """Raises if a tokenizer has more tokens, without added ones, than its model has embeddings.

    Raises:
        ModelLoadError: The tokenizer belongs to another model.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    if tokenizer.vocab_size > rows:
        raise ModelLoadError(
            name,
            f"its tokenizer {tokenizer.name_or_path!r} has {tokenizer.vocab_size} tokens, but the model has embeddings "
            f"for {rows}; give the tokenizer that the model was trained with",
        )


def image_token_id(name: str, architecture: Any) -> int:
    """Returns the id whose embeddings a vision-language model replaces by features of images.

    Raises:
        ModelLoadError: Its configuration names none.
    """
    found = getattr(architecture, "image_token_id", None)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise ModelLoadError(
            name, f"the image_token_id of its config.json must be the id of its image token, not {quote(found)}"
        )
    return found


def end_ids(name: str, model: Any, tokenizer: Any, rows: int) -> list[int]:
    """Returns the ids that end a text according to a model's generation config.

    Warns if these suggest that the tokenizer belongs to another model: if one of them is ordinary text, or if the
    tokenizer's own ``eos_token_id`` is not among them.

    Args:
        name: The member's name, for errors and warnings.
        model: The model, of transformers.
        tokenizer: Its tokenizer, of transformers.
        rows: Rows of the model's output head.

    Raises:
        ModelLoadError: ``eos_token_id`` is neither an id of the model nor a list of such ids.
    """
    for owner, what in ((model.config, "config.json"), (model.generation_config, "generation_config.json")):
        ends = getattr(owner, "eos_token_id", None)
        found = [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [ends]
        for index in found:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < rows:
                raise ModelLoadError(
                    name,
                    f"the eos_token_id of its {what} is {quote(ends)}; it must be an id of the model, from 0 to "
                    f"{rows - 1}, or a list of such",
                )
    added = tokenizer.added_tokens_decoder
    texts = [index for index in found if index not in added and index < len(tokenizer)]
    if texts:
        logger.warning(
            "member %r ends its answers at token %d, %s, which its tokenizer does not mark as special; check that the "
            "tokenizer belongs to the model",
            *(name, texts[0], quote(tokenizer.convert_ids_to_tokens(texts[0]))),
        )
    own = tokenizer.eos_token_id
    if found and own is not None and own not in found:
        logger.warning(
            "member %r: its tokenizer ends a text with token %d, its generation_config.json with %s; both end its "
            "answers. Check that the tokenizer belongs to the model",
            *(name, own, ", ".join(map(str, found))),
        )
    return found
