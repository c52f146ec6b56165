"""How a member's weights are packed into fewer bits: by bitsandbytes at loading, or in a GGUF file."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

import torch

from gac_core.errors import ModelLoadError
from gac_core.member_config import MemberConfig


def loading_options(config: MemberConfig) -> dict[str, Any]:
    """Returns the arguments of ``from_pretrained`` that pack a member's weights; none where they stay as they are.

    Weights of a GGUF file stay packed where the package ``kernels`` is installed and has a kernel for them.

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


def packed_bytes(model: Any) -> int:
    """Returns how many bytes of a model's weights are held as GGUF blocks."""
    names = getattr(getattr(model, "hf_quantizer", None), "packed_modules", {})
    return sum(int(model.get_parameter(name).nbytes) for name in names)


def _gguf_options() -> dict[str, Any]:
    from transformers import GgufConfig
    from transformers.utils import is_kernels_available

    if not is_kernels_available():
        return {"quantization_config": GgufConfig(dequantize=True)}
    # The attention that comes with the kernels does not take the masks of batched rows.
    return {"quantization_config": GgufConfig(), "attn_implementation": "sdpa"}
