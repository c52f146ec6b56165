"""How the distributions that follow from several documents become one.

Pure functions on distributions over the union vocabulary, one module per rule. `DOCUMENT_RULES` are the rules that
`EnsembleConfig.combine_documents` and the parameter of the same name select.
"""

from gac_core.combination.documents.confidence import confident_mean
from gac_core.combination.documents.contrast import Contrast
from gac_core.combination.documents.interface import DocumentRule, Votes
from gac_core.combination.documents.mean import document_mean
from gac_core.combination.documents.tables import DOCUMENT_RULES, document_rule_named

__all__ = [
    "DOCUMENT_RULES",
    "Contrast",
    "DocumentRule",
    "Votes",
    "confident_mean",
    "document_mean",
    "document_rule_named",
]
