"""GaC for LlamaIndex: `GaCLLM`."""

from gac_llamaindex.llm import GaCLLM

__all__ = ["GaCLLM"]
