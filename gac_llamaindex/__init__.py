"""GaC for LlamaIndex: `GaCLLM`."""

try:
    from gac_llamaindex.llm import GaCLLM
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "llama_index":
        raise
    raise ImportError(
        "gac_llamaindex needs LlamaIndex: pip install 'gac-ensemble[llamaindex]'", name=error.name
    ) from error

__all__ = ["GaCLLM"]
