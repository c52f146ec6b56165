"""`DocumentRule` and `Votes`: the signature and laws of the rules over documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Votes:
    """What a rule makes of the documents' distributions.

    Attributes:
        combined: The combined distribution, float32, shape ``[union]``, on the first distribution's device. Its sum is
            that of the weighted mean of the distributions.
        parts: Returns what each document contributes to some tokens. It takes union ids, int64, shape ``[n]``, on the
            device of ``combined``, and returns float32, shape ``[documents, n]``, 0 or more; only the ratios between
            documents matter.
    """

    combined: Tensor
    parts: Callable[[Tensor], Tensor]


class DocumentRule(Protocol):
    """Combines the distributions of several documents. It has no state: the result depends on one position alone.

    Every rule obeys three laws. The order of the documents does not matter. Replacing all documents by the same number
    of copies does not matter. Where all documents and the prior have the same distribution, that is the result.
    """

    def __call__(self, distributions: Sequence[Tensor], weights: Sequence[float], prior: Tensor | None) -> Votes:
        """Returns the combined distribution, and what each document contributes to it.

        Args:
            distributions: One per document, at least one, float32, shape ``[union]``, on any devices. Where a grammar
                removed mass, their sums are below one.
            weights: One per document, above 0; they sum to one.
            prior: The distribution without any document, likewise. None: there is none.
        """
        ...
