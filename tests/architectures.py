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
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 256, "initializer_range": 0.3}
ARCHITECTURES = {
    "llama": lambda v: LlamaForCausalLM(LlamaConfig(vocab_size=v, num_key_value_heads=2, **SMALL)),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, num_key_value_heads=2, **SMALL)),
    "gpt2": lambda v: GPT2LMHeadModel(GPT2Config(vocab_size=v, **GPT2, bos_token_id=1, eos_token_id=1)),
    "neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, **SMALL, bos_token_id=1, eos_token_id=1)),
    "mistral with a window of 8": lambda v: MistralForCausalLM(
        MistralConfig(vocab_size=v, num_key_value_heads=2, sliding_window=8, **SMALL)
    ),
    "gemma3 with mixed layers": lambda v: Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=v,
            num_key_value_heads=2,
            head_dim=16,
            sliding_window=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            **SMALL,
        )
    ),
}


def random_model(name, tokenizer, seed=0):
    """A model with random weights for a tokenizer; sharp enough that its greedy text varies."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name](len(tokenizer)).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
