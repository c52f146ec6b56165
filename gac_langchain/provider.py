"""`CHAT_PROVIDER`: `ChatGaC` as an entry of the table of providers of LangChain's ``init_chat_model``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel


def _make(cls: type[BaseChatModel], model: str, **fields: Any) -> BaseChatModel:
    # The name of a folder may contain a plus.
    names = [model] if Path(model).exists() else [name.strip() for name in model.split("+")]
    is_config = model.lower().endswith((".yaml", ".yml"))
    named: dict[str, Any] = {"config": model} if is_config else {"models": names}
    return cls(**named, **fields)


CHAT_PROVIDER: tuple[str, str, Callable[..., BaseChatModel]] = ("gac_langchain", "ChatGaC", _make)
"""Module, class and factory. The model's name is a folder, the names of the members, joined by ``+``, or the
path of a YAML file.

LangChain has no public registry of providers; its table is private (``langchain.chat_models.base._BUILTIN_PROVIDERS``).
"""
