"""Loading a member's model and tokenizer: checked before anything is read, verified tensor by tensor afterwards."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gac_core.errors import GaCError, ModelLoadError, quote, shorten
from gac_core.member_config import MemberConfig
from gac_core.model.memory import check_dimensions, check_memory, format_bytes, lacks_memory, out_of_memory
from gac_core.model.places import Source, check_device, check_files, find_source, load_error
from gac_core.model.quantization import loading_options, packed_bytes
from gac_core.templates.plain import PLAIN, plain_template
from gac_core.tokenization.tokenizer import MemberTokenizer

logger = logging.getLogger(__name__)
_NAMED = 4


@dataclass(frozen=True)
class Checkpoint:
    """A member's files, found and checked, whose weights are not loaded yet.

    Attributes:
        config: The member's settings.
        weights: Where its weights are.
        tokenizer: Where its tokenizer is.
        device: Where to put the weights; None where ``config.device_map`` says so.
        architecture: The configuration of its model, of transformers.
    """

    config: MemberConfig
    weights: Source
    tokenizer: Source
    device: str | None
    architecture: Any

    @classmethod
    def find(cls, config: MemberConfig, device: str) -> Checkpoint:
        """Finds a member's files and checks what can be checked without reading weights.

        Args:
            config: What to load and how.
            device: Where to put it if the config names neither device nor device_map.

        Raises:
            ModelLoadError: Files are missing or not accepted, the model is not a causal language model, the device
                cannot be used, or its memory certainly does not suffice.
        """
        from transformers import AutoConfig

        name = config.model
        place = None if config.device_map is not None else config.device or device
        if place is not None:
            check_device(name, place)
        loading_options(config)
        weights = find_source(name, config.model, config.gguf_file, config.revision)
        tokenizer = weights if config.tokenizer is None else find_source(name, config.tokenizer)
        check_files(name, weights, config.allow_pickle)
        try:
            architecture = AutoConfig.from_pretrained(**weights.arguments, **_hub(config))
        except Exception as error:
            raise load_error(name, error) from error
        check_architecture(name, architecture, config.trust_remote_code)
        if place is not None:
            check_memory(config, weights, place, _dtype(architecture))
        check_dimensions(name, weights, architecture)
        return cls(config, weights, tokenizer, place, architecture)

    def load(self) -> tuple[Any, Any]:
        """Loads the weights and the tokenizer.

        Returns:
            The causal language model and the tokenizer, both of transformers.

        Raises:
            ModelLoadError: Something could not be loaded, or the weights do not match the model.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        config = self.config
        options = loading_options(config)
        if config.is_gguf:
            # Reading the configuration from a GGUF file again takes as long as the whole vocabulary does.
            options["config"] = self.architecture
        try:
            tokenizer = AutoTokenizer.from_pretrained(**self.tokenizer.arguments, **_hub(config))
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                **self.weights.arguments,
                dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
                device_map={"": self.device} if self.device is not None else config.device_map,
                use_safetensors=None if config.allow_pickle else True,
                # Raised below, with the names that transformers only logs.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
                **_hub(config),
            )
        except Exception as error:
            if lacks_memory(error):
                raise out_of_memory(config, self.weights, self.device, _dtype(self.architecture)) from error
            raise load_error(config.model, error) from error
        model, info = loaded
        check_tensors(config.model, type(model).__name__, info)
        check_tokenizer(config.model, model, tokenizer)
        if config.is_gguf:
            _report_memory(config, model)
        if config.chat_template is not None:
            plain = config.chat_template == PLAIN
            tokenizer.chat_template = plain_template(tokenizer) if plain else config.chat_template
        return model, tokenizer


def check_architecture(name: str, architecture: Any, trust_remote_code: bool = False) -> None:
    """Raises if a model is not one that transformers loads as a causal language model.

    Args:
        name: The model, for errors.
        architecture: Its configuration.
        trust_remote_code: Whether code that comes with the model may define its class.

    Raises:
        ModelLoadError: It is another kind of model, such as one for embeddings or classification.
    """
    import transformers
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if trust_remote_code and "AutoModelForCausalLM" in (getattr(architecture, "auto_map", None) or {}):
        return
    named = architecture.architectures or ()
    if not isinstance(named, (list, tuple)) or not all(isinstance(each, str) for each in named):
        raise ModelLoadError(
            name, f"the architectures of its config.json must be a list of names of classes, not {quote(named)}"
        )
    classes = list(named)
    loadable = type(architecture) in MODEL_FOR_CAUSAL_LM_MAPPING
    causal: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        causal.update([names] if isinstance(names, str) else names)
    # Names that transformers does not know are older or foreign spellings; their tensors tell.
    others = [each for each in classes if each not in causal and hasattr(transformers, each)]
    if loadable and (not classes or len(others) < len(classes)):
        return
    kind = ", ".join(classes) or f"model type {architecture.model_type!r}"
    raise ModelLoadError(
        name,
        f"its architecture, {kind}, is not a causal language model of transformers; give a model that generates text "
        "(its class ends in ForCausalLM or LMHeadModel)",
    )


def member_tokenizer(name: str, tokenizer: Any, ends: Iterable[int], rows: int) -> MemberTokenizer:
    """Returns a member's tokenizer as bytes.

    Raises:
        ModelLoadError: It cannot be used; its files are damaged.
        ChatTemplateError: Its chat template computes without end.
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
        # Whatever transformers meets in files that it read without checking them.
        raise ModelLoadError(
            name,
            f"its tokenizer cannot be used: {type(error).__name__}: {shorten(str(error))}; its tokenizer.json or "
            "tokenizer_config.json is damaged, download or save it again",
        ) from error


def check_tensors(name: str, kind: str, info: Mapping[str, Collection[Any]]) -> None:
    """Raises if a checkpoint lacks tensors of its model, or holds others.

    Args:
        name: The model, for errors.
        kind: Its class.
        info: What ``from_pretrained`` reports; tied and ignorable tensors are left out of it already.

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
        f"{len(names)} {what}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
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
    """Raises if a tokenizer has more tokens than its model has embeddings; added tokens are not counted.

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


def end_ids(name: str, model: Any, tokenizer: Any, rows: int) -> list[int]:
    """Returns the ids that end a text by the generation config of a model.

    What can be known of whether a tokenizer belongs to its model is checked: that every end of a text is an id of the
    model, and (with a warning) that it is no ordinary piece of text, and one of those that the tokenizer ends with.

    Raises:
        ModelLoadError: ``eos_token_id`` is not an id of the model, or a list of such.
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


def _report_memory(config: MemberConfig, model: Any) -> None:
    total = sum(parameter.nbytes for parameter in model.parameters())
    packed = packed_bytes(model)
    if packed:
        logger.info(
            "member %r: %s of its GGUF weights stay packed; it takes %s of memory",
            *(config.called, format_bytes(packed), format_bytes(total)),
        )
    else:
        logger.warning(
            "member %r: its GGUF weights were dequantised to %s; it takes %s of memory",
            *(config.called, str(model.dtype).removeprefix("torch."), format_bytes(total)),
        )


def _hub(config: MemberConfig) -> dict[str, Any]:
    return {"revision": config.revision, "trust_remote_code": config.trust_remote_code}


def _dtype(architecture: Any) -> torch.dtype | None:
    dtype = getattr(architecture, "dtype", None) or getattr(architecture.get_text_config(), "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else None
