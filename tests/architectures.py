"""Small random models of several architectures."""

from __future__ import annotations

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
WINDOWS = {
    "head_dim": 16,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, GROUPED),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, GROUPED),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {**GPT2, "bos_token_id": 1, "eos_token_id": 1}),
    "neox": (GPTNeoXForCausalLM, GPTNeoXConfig, {**SMALL, "bos_token_id": 1, "eos_token_id": 1}),
    "mistral with a window of 8": (MistralForCausalLM, MistralConfig, {**GROUPED, "sliding_window": 8}),
    "gemma3 with mixed layers": (Gemma3ForCausalLM, Gemma3TextConfig, {**GROUPED, **WINDOWS}),
}


def random_model(name, tokenizer, seed=0, **shape):
    """A model with random weights for a tokenizer; sharp enough that its greedy text varies.

    Args:
        name: Key of `ARCHITECTURES`.
        tokenizer: Sets its vocabulary size, end of text and padding.
        seed: Seed of its weights.
        **shape: Fields of its configuration to change.
    """
    torch.manual_seed(seed)
    model_class, config_class, settings = ARCHITECTURES[name]
    model = model_class(config_class(vocab_size=len(tokenizer), **{**settings, **shape})).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
