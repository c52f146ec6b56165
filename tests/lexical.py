"""An embedding that counts words, for indexes in tests: texts with the same words are near, without any model."""

from __future__ import annotations

import re
import zlib

from llama_index.core.embeddings import BaseEmbedding


class LexicalEmbedding(BaseEmbedding):
    """Hashes each word to one of 256 places."""

    def _get_text_embedding(self, text: str) -> list[float]:
        counts = [0.0] * 256
        for word in re.findall(r"\w+", text.lower()):
            counts[zlib.crc32(word.encode()) % 256] += 1.0
        return counts

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)
