"""GaC for LlamaIndex: `GaCLLM`, and `VoicesSynthesizer`, which answers from retrieved nodes."""

try:
    from gac_llamaindex.llm import GaCLLM
    from gac_llamaindex.voices import VoicesSynthesizer
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "llama_index":
        raise
    raise ImportError(
        "gac_llamaindex needs LlamaIndex: pip install 'gac-ensemble[llamaindex]'", name=error.name
    ) from error

__all__ = ["GaCLLM", "VoicesSynthesizer"]
