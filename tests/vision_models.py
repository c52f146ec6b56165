"""Tiny vision-language models of several architectures, with random weights, saved with their processors.

Each has the first embedded tokenizer with image tokens added, and a chat template that writes a placeholder for each
image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from conftest import EMBEDDED, tokenizer_of
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACEHOLDER{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
PATCHES = {**VISION, "image_size": 16, "patch_size": 4}


def _tokenizer(placeholder: str, *tokens: str):
    tokenizer = copy.deepcopy(tokenizer_of(EMBEDDED[0]))
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    tokenizer.chat_template = TEMPLATE.replace("PLACEHOLDER", placeholder)
    return tokenizer


def _text(tokenizer, **settings: Any) -> dict[str, Any]:
    """The configuration of a text model for a tokenizer."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return {"vocab_size": len(tokenizer), "bos_token_id": None, **ends, **TEXT, **settings}


def _save(folder: Path, model: Any, tokenizer: Any, processor: Any) -> None:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)


def llava(folder: Path, context: int = 512) -> None:
    """LLaVA: a CLIP tower, one token for each patch."""
    tokenizer = _tokenizer("<image>", "<image>")
    pixels = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**PATCHES, projection_dim=16),
        text_config=LlamaConfig(**_text(tokenizer, max_position_embeddings=context)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    _save(folder, LlavaForConditionalGeneration(config), tokenizer, processor)


def qwen2_vl(folder: Path) -> None:
    """Qwen2-VL: rotary embeddings over time, height and width, and as many tokens as an image has patches."""
    tokenizer, ids, pixels = _qwen()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    config = Qwen2VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": TEXT["hidden_size"],
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        **ids,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    _save(folder, Qwen2VLForConditionalGeneration(config), tokenizer, pixels)


def qwen3_5(folder: Path) -> None:
    """Qwen3.5: layers of linear attention, whose state cannot be truncated, and rotary embeddings as Qwen2-VL."""
    tokenizer, ids, pixels = _qwen()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 1], "partial_rotary_factor": 0.5}
    linear = {"linear_num_key_heads": 2, "linear_num_value_heads": 2}
    linear |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8}
    layers = {"layer_types": ["linear_attention", "full_attention"], "head_dim": 12}
    config = Qwen3_5Config(
        text_config=_text(tokenizer, rope_parameters={**rope, "mrope_interleaved": True}, **linear, **layers),
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": TEXT["hidden_size"],
            "num_position_embeddings": 64,
            "initializer_range": 0.3,
        },
        **ids,
    )
    _save(folder, Qwen3_5ForConditionalGeneration(config), tokenizer, pixels)


def qwen3_vl(folder: Path) -> None:
    """Qwen3-VL: features of images are added in several decoder layers (DeepStack)."""
    tokenizer, ids, pixels = _qwen()
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope, head_dim=12),
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 4,
            "out_hidden_size": TEXT["hidden_size"],
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.3,
        },
        **ids,
    )
    _save(folder, Qwen3VLForConditionalGeneration(config), tokenizer, pixels)


def llava_next(folder: Path) -> None:
    """LLaVA-NeXT: an image is cut into tiles by its shape."""
    tokenizer = _tokenizer("<image>", "<image>")
    shapes = [[16, 32], [32, 16], [32, 32]]
    pixels = LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=shapes
    )
    processor = LlavaNextProcessor(
        pixels,
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**PATCHES, projection_dim=16),
        text_config=LlamaConfig(**_text(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=shapes,
    )
    _save(folder, LlavaNextForConditionalGeneration(config), tokenizer, processor)


def _qwen():
    """A tokenizer, the ids of its image tokens by their names in configurations, and an image processor."""
    tokens = {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    }
    tokenizer = _tokenizer("<|vision_start|><|image_pad|><|vision_end|>", *tokens.values())
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()}
    return tokenizer, ids, Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)


def gemma3(folder: Path) -> None:
    """Gemma 3: the tokens of an image attend to each other in both directions, in layers with and without a window."""
    tokens = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
    tokenizer = _tokenizer(tokens[0], *tokens)
    tokenizer._set_model_specific_special_tokens(
        dict(zip(("boi_token", "eoi_token", "image_token"), tokens, strict=True))
    )
    pixels = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    processor = Gemma3Processor(pixels, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4)
    start, end, image = tokenizer.convert_tokens_to_ids(list(tokens))
    layers = {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
    config = Gemma3Config(
        text_config=_text(tokenizer, **layers, head_dim=12, sliding_window=8, tie_word_embeddings=False),
        vision_config=PATCHES,
        mm_tokens_per_image=4,
        boi_token_index=start,
        eoi_token_index=end,
        image_token_index=image,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    model = Gemma3ForConditionalGeneration(config)
    # Zero where it is not trained.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    _save(folder, model, tokenizer, processor)


def idefics3(folder: Path) -> None:
    """Idefics3, as SmolVLM: images in tiles, with markers of rows and columns between them."""
    tiles = [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]
    markers = ("<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles)
    tokenizer = _tokenizer("<image>", "<image>", *markers)
    pixels = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = Idefics3Processor(pixels, tokenizer, image_seq_len=4, chat_template=tokenizer.chat_template)
    config = Idefics3Config(
        vision_config=PATCHES,
        text_config=LlamaConfig(**_text(tokenizer)),
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(folder, Idefics3ForConditionalGeneration(config), tokenizer, processor)


KINDS: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "qwen2_vl": qwen2_vl,
    "gemma3": gemma3,
    "idefics3": idefics3,
    "qwen3_5": qwen3_5,
    "qwen3_vl": qwen3_vl,
    "llava_next": llava_next,
}
