"""`Checkpoint`: finds and checks a member's files, then loads its tokenizer and model with transformers."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gac_core.errors import ModelLoadError
from gac_core.member_config import MemberConfig
from gac_core.model.checkpoint_checks import check_architecture, check_chat_template, check_tensors
from gac_core.model.memory import (
    check_dimensions,
    lacks_memory,
    out_of_memory,
    stored_dtype,
    weight_bytes,
    weight_files,
)
from gac_core.model.places import Source, check_device, check_files, find_source, load_error
from gac_core.model.processors import has_processor, is_vision_language, load_processor
from gac_core.model.progress import tensors_reported
from gac_core.model.quantization import keeps_packed, loading_options, packed_bytes
from gac_core.model.skeleton import Skeleton
from gac_core.placement.sizes import format_bytes
from gac_core.templates.plain import PLAIN, plain_template

logger = logging.getLogger(__name__)


class _Locks:
    """The locks of loading.

    Attributes:
        models: Held while transformers builds a model, which changes state of the whole process: torch's default dtype
            and some functions.
        tokenizers: Held while transformers loads a tokenizer.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.models = threading.Lock()
        self.tokenizers = threading.Lock()


_locks = _Locks()

if hasattr(os, "register_at_fork"):
    # A thread of the parent may hold them.
    os.register_at_fork(after_in_child=_locks.reset)


@dataclass(frozen=True)
class Checkpoint:
    """The files of a member, found and checked, before its weights are read.

    Attributes:
        config: The member's settings.
        weights: Where its weights are.
        tokenizer: Where its tokenizer is.
        device: Where to put the weights; None if ``config.device_map`` decides.
        architecture: The model's configuration, of transformers.
        reads_images: Whether it is a vision-language model with a processor.
    """

    config: MemberConfig
    weights: Source
    tokenizer: Source
    device: str | None
    architecture: Any
    reads_images: bool = False

    @classmethod
    def find(cls, config: MemberConfig) -> Checkpoint:
        """Finds a member's files and checks whatever they show without reading weights.

        Args:
            config: The member's settings.

        Raises:
            ModelLoadError: Files are missing or not accepted, the model is neither a causal language model nor a
                vision-language model with a processor, the device cannot be used, or its dimensions do not fit the
                weights.
        """
        from transformers import AutoConfig

        name = config.model
        if config.device is not None:
            check_device(name, config.device)
        loading_options(config)
        if config.is_gguf and importlib.util.find_spec("gguf") is None:
            raise ModelLoadError(
                name, "GGUF files need the package gguf, which is not installed; pip install 'gac-ensemble[gguf]'"
            )
        weights = find_source(name, config.model, config.gguf_file, config.revision)
        tokenizer = weights if config.tokenizer is None else find_source(name, config.tokenizer)
        check_files(name, weights, config.allow_pickle)
        try:
            architecture = AutoConfig.from_pretrained(**weights.arguments, **_hub(config))
        except Exception as error:
            raise load_error(name, error) from error
        reads_images = is_vision_language(architecture) and has_processor(weights, config.revision)
        check_architecture(name, architecture, config.trust_remote_code, reads_images)
        check_dimensions(name, weights, architecture)
        return cls(config, weights, tokenizer, config.device, architecture, reads_images)

    @classmethod
    def without_weights(cls, config: MemberConfig) -> Checkpoint:
        """Finds the tokenizer and the processor of a member, whose folder need not hold weights.

        Args:
            config: The member's settings.

        Raises:
            ModelLoadError: Files are missing.
        """
        from transformers import AutoConfig

        weights = find_source(config.model, config.model, config.gguf_file, config.revision)
        tokenizer = weights if config.tokenizer is None else find_source(config.model, config.tokenizer)
        if not has_processor(weights, config.revision):
            return cls(config, weights, tokenizer, None, None)
        try:
            architecture = AutoConfig.from_pretrained(**weights.arguments, **_hub(config))
        except Exception as error:
            raise load_error(config.model, error) from error
        return cls(config, weights, tokenizer, None, architecture, is_vision_language(architecture))

    def placed(self, config: MemberConfig) -> Checkpoint:
        """Returns these files for the same member with a device or a device map.

        Raises:
            ModelLoadError: The device cannot be used.
        """
        if config.device is not None:
            check_device(config.model, config.device)
        return replace(self, config=config, device=config.device)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights once they are loaded, where these are not packed."""
        if self.config.dtype != "auto":
            dtype: torch.dtype = getattr(torch, self.config.dtype)
            return dtype
        stored = None if self.config.is_gguf else stored_dtype(self.weights)
        return _dtype(self.architecture) or stored or torch.float32

    @property
    def vocab_size(self) -> int:
        """Rows of the output head by the configuration; 0 if this does not tell."""
        size = getattr(self.architecture.get_text_config(decoder=True), "vocab_size", None)
        return size if isinstance(size, int) else 0

    @property
    def is_packed(self) -> bool:
        """Whether the files hold packed weights that stay packed in memory."""
        if self.config.is_gguf:
            return keeps_packed()
        return getattr(self.architecture, "quantization_config", None) is not None

    def stored_bytes(self) -> int | None:
        """Returns the bytes of the weights by the headers of their files; None if these are not local."""
        if self.config.is_gguf and self.is_packed:
            return Path(self.weights.path, str(self.weights.gguf_file)).stat().st_size
        return weight_bytes(self.config, self.weights, _dtype(self.architecture))

    def skeleton(self) -> Skeleton:
        """Builds the model without storage for its weights, which takes some milliseconds."""
        # transformers leaves it untyped.
        build: Any = self._auto_class.from_config
        with _locks.models, torch.device("meta"):
            model = build(self.architecture, dtype=self.dtype, trust_remote_code=self.config.trust_remote_code)
        return Skeleton(model.eval(), self.config)

    @property
    def _auto_class(self) -> Any:
        from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

        return AutoModelForImageTextToText if self.reads_images else AutoModelForCausalLM

    def load_processor(self) -> Any:
        """Loads the processor, of transformers, with its tokenizer; None if the model reads text alone.

        That is so with a tokenizer of another model, which may lack the image tokens or have other ids for them.

        Raises:
            ModelLoadError: It could not be loaded.
        """
        if not self.reads_images:
            return None
        if self.config.tokenizer is not None:
            logger.warning("member %r reads text alone: its tokenizer is that of another model", self.config.called)
            return None
        with self._one_at_a_time(_locks.tokenizers):
            return load_processor(self.weights, self.config, self.architecture)

    def load_tokenizer(self, processor: Any = None) -> Any:
        """Loads the tokenizer, of transformers, with the member's chat template.

        Args:
            processor: The model's processor, whose tokenizer and chat template are returned. Default: it has none.

        Raises:
            ModelLoadError: It could not be loaded.
            ConfigError: The chat template of the member's settings cannot be rendered.
        """
        from transformers import AutoTokenizer

        config = self.config
        if processor is not None:
            tokenizer = processor.tokenizer
            tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
        else:
            with self._one_at_a_time(_locks.tokenizers):
                tokenizer = AutoTokenizer.from_pretrained(**self.tokenizer.arguments, **_hub(config))
        if config.chat_template is not None:
            plain = config.chat_template == PLAIN
            tokenizer.chat_template = plain_template(tokenizer) if plain else config.chat_template
            check_chat_template(config.called, tokenizer)
        return tokenizer

    def read_ahead(self) -> None:
        """Lets the system read the weights' files into its cache, without waiting for it."""
        for path in weight_files(self.weights) if hasattr(os, "posix_fadvise") else []:
            with suppress(OSError), path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)

    def load_model(self, report: Callable[[float], None] = lambda fraction: None) -> Any:
        """Loads the causal or vision-language model, of transformers.

        Args:
            report: Called with the fraction of its tensors that are loaded. Default: nothing.

        Raises:
            ModelLoadError: It could not be loaded, or the weights do not match the model.
        """
        config = self.config
        options = loading_options(config)
        if config.is_gguf:
            # Reading the configuration from a GGUF file again would take as long as reading the vocabulary.
            options["config"] = self.architecture
        with self._one_at_a_time(_locks.models), tensors_reported(report):
            # transformers leaves its return type open.
            loaded: Any = self._auto_class.from_pretrained(
                **self.weights.arguments,
                dtype=config.dtype if config.dtype == "auto" else getattr(torch, config.dtype),
                device_map={"": self.device} if self.device is not None else config.device_map,
                use_safetensors=None if config.allow_pickle else True,
                # Reported by `check_tensors`, with the names of the tensors.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
                **_hub(config),
            )
        model, info = loaded
        check_tensors(config.model, type(model).__name__, info)
        if config.is_gguf:
            _report_memory(config, model)
        return model

    @contextmanager
    def _one_at_a_time(self, lock: threading.Lock) -> Iterator[None]:
        """Lets threads that load wait for each other, and converts what transformers raises."""
        try:
            with lock:
                yield
        except Exception as error:
            if lacks_memory(error):
                raise out_of_memory(self.config, self.weights, self.device, _dtype(self.architecture)) from error
            raise load_error(self.config.model, error) from error


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
