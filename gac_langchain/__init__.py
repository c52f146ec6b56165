"""GaC for LangChain: `ChatGaC` (chat model), `GaCLLM` (text model), and chains that answer from several documents."""

try:
    from gac_langchain.chat_model import ChatGaC
    from gac_langchain.llm import GaCLLM
    from gac_langchain.provider import CHAT_PROVIDER
    from gac_langchain.retrieval import create_voices_retrieval_chain
    from gac_langchain.voices import VoicesChain, create_voices_chain
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "langchain_core":
        raise
    raise ImportError(
        "gac_langchain needs LangChain: pip install 'gac-ensemble[langchain]'", name=error.name
    ) from error

__all__ = [
    "CHAT_PROVIDER",
    "ChatGaC",
    "GaCLLM",
    "VoicesChain",
    "create_voices_chain",
    "create_voices_retrieval_chain",
]
