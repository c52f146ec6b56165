"""How a member's weights are packed into fewer bits when they are loaded, through bitsandbytes.

Knows a member's settings; knows nothing of runners or caches.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from gac_core.config import MemberConfig
from gac_core.errors import ModelLoadError


def loading_options(config: MemberConfig) -> dict[str, Any]:
    """Returns what ``from_pretrained`` needs to pack a member's weights; nothing where they stay as they are.

    Args:
        config: The member's settings.

    Raises:
        ModelLoadError: bitsandbytes is not installed.
    """
    if config.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(
            config.called,
            f"quantization {config.quantization!r} needs bitsandbytes, which is not installed; "
            "pip install 'gac-ensemble[quantized]', or leave quantization out",
        )
    from transformers import BitsAndBytesConfig

    # transformers leaves its constructor untyped.
    packing: Any = BitsAndBytesConfig

    if config.quantization == "8bit":
        # It warns once per layer and forward that it computes in float16, as it always does.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return {"quantization_config": packing(load_in_8bit=True)}
    return {
        "quantization_config": packing(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype),
        )
    }
