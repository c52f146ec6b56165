"""GaC for LangChain: `ChatGaC` (chat model) and `GaCLLM` (text model)."""

from gac_langchain.chat_model import ChatGaC
from gac_langchain.llm import GaCLLM

__all__ = ["ChatGaC", "GaCLLM"]
