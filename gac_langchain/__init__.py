"""GaC for LangChain: `ChatGaC` (chat model) and `GaCLLM` (text model)."""

try:
    from gac_langchain.chat_model import ChatGaC
    from gac_langchain.llm import GaCLLM
    from gac_langchain.provider import CHAT_PROVIDER
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise ImportError(
        "gac_langchain needs LangChain: pip install 'gac-ensemble[langchain]'", name=error.name
    ) from error

__all__ = ["CHAT_PROVIDER", "ChatGaC", "GaCLLM"]
