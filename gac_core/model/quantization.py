"""Quantized weights: by bitsandbytes while loading, or stored in a GGUF file."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from gac_core.errors import ModelLoadError
from gac_core.member_config import MemberConfig


def loading_options(config: MemberConfig) -> dict[str, Any]:
    """Returns the arguments of ``from_pretrained`` for quantized weights; empty without quantization.

    Weights of a GGUF file stay packed if the package ``kernels`` is installed and has a kernel for them.

    Args:
        config: The member's settings.

    Raises:
        ModelLoadError: bitsandbytes is not installed.
    """
    if config.is_gguf:
        return _gguf_options()
    if config.quantization is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelLoadError(
            config.called,
            f"quantization {config.quantization!r} needs bitsandbytes, which is not installed; "
            "pip install 'gac-ensemble[quantized]', or leave quantization out",
        )
    from transformers import BitsAndBytesConfig

    # transformers leaves the constructor untyped.
    packing: Any = BitsAndBytesConfig

    if config.quantization == "8bit":
        # bitsandbytes would warn in every layer and forward that it computes in float16.
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


def packed_bytes(model: Any) -> int:
    """Returns the bytes of a model's weights that are stored as GGUF blocks."""
    names = getattr(getattr(model, "hf_quantizer", None), "packed_modules", {})
    return sum(int(model.get_parameter(name).nbytes) for name in names)


def keeps_packed() -> bool:
    """Whether weights of a GGUF file stay packed: whether the package ``kernels`` is installed."""
    from transformers.utils import is_kernels_available

    return bool(is_kernels_available())


def _gguf_options() -> dict[str, Any]:
    from transformers import GgufConfig

    if not keeps_packed():
        return {"quantization_config": GgufConfig(dequantize=True)}
    # The attention of these kernels does not support the masks of batched rows.
    return {"quantization_config": GgufConfig(), "attn_implementation": "sdpa"}
