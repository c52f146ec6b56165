"""The rules over documents by the names that select them (`EnsembleConfig.combine_documents`)."""

from __future__ import annotations

from gac_core.combination.documents.confidence import confident_mean
from gac_core.combination.documents.contrast import Contrast
from gac_core.combination.documents.interface import DocumentRule
from gac_core.combination.documents.mean import document_mean
from gac_core.rule_names import contrast_beta

DOCUMENT_RULES: dict[str, DocumentRule] = {
    "mean": document_mean,
    "contrast": Contrast(),
    "contrast:jsd": Contrast(None),
    "confidence": confident_mean,
}
"""Rules over documents by name; beside these, ``"contrast:BETA"`` is `Contrast` with the exponent BETA.

Rules may be added to it. The names of those here are also in `gac_core.rule_names`, which is checked before torch is
imported.
"""


def document_rule_named(name: str) -> DocumentRule:
    """Returns the rule over documents of a name that `check_combine_documents` accepts."""
    beta = contrast_beta(name)
    return DOCUMENT_RULES[name] if beta is None else Contrast(beta)
