"""Processors of vision-language models: whether a checkpoint has one, and loading it with transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gac_core.member_config import MemberConfig
from gac_core.model.places import Source

_FILES = ("processor_config.json", "preprocessor_config.json")
# What reads videos needs torchvision, also where images alone are read.
_VIDEO = "video_processor"


def is_vision_language(architecture: Any) -> bool:
    """Returns whether transformers has a vision-language model, with a decoder alone, for a configuration."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(architecture) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not getattr(
        architecture, "is_encoder_decoder", False
    )


def has_processor(source: Source, revision: str | None = None) -> bool:
    """Returns whether a checkpoint has a processor's configuration.

    Args:
        source: Where its files are.
        revision: Version on the hub.
    """
    if source.gguf_file is not None:
        return False
    if os.path.isdir(source.path):
        return any(Path(source.path, name).is_file() for name in _FILES)
    from transformers.utils import cached_file

    missing = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    return any(cached_file(source.path, name, revision=revision, **missing) is not None for name in _FILES)


def load_processor(source: Source, config: MemberConfig, architecture: Any) -> Any:
    """Loads a processor of transformers; it reads images, and videos only where torchvision is installed.

    Args:
        source: Where its files are.
        config: The member's settings.
        architecture: The model's configuration.

    Raises:
        ImportError: Pillow is not installed.
        Exception: Whatever transformers raises.
    """
    from transformers import PROCESSOR_MAPPING, AutoProcessor
    from transformers.utils import is_torchvision_available, is_vision_available

    if not is_vision_available():
        raise ImportError("a vision-language model needs Pillow: pip install 'gac-ensemble[vision]'")
    settings = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    # transformers leaves them untyped.
    kinds: Any = PROCESSOR_MAPPING
    automatic: Any = AutoProcessor
    known = kinds.get(type(architecture), None)
    if known is None or is_torchvision_available() or _VIDEO not in known.get_attributes():
        return automatic.from_pretrained(**source.arguments, **settings)
    return _without_video(known).from_pretrained(**source.arguments, **settings)


def _without_video(kind: type[Any]) -> type[Any]:
    """A class of processors that have the part for images alone."""
    attributes = [name for name in kind.get_attributes() if name != _VIDEO]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: attributes), _VIDEO: None})
