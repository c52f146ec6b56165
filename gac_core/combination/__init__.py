"""How the members' distributions become one, and when one of them decides alone.

Pure functions on distributions over the union vocabulary, one module per rule. `COMBINERS` and `GATES` are the rules
that `EnsembleConfig.combine`, `EnsembleConfig.gate_rule` and the parameters of the same names select. To add a rule,
write a module with a function, and put it into the table (`gac_core/combination/tables.py`) and its name into
`gac_core/rule_names.py`.
"""

from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.gate_confidence import confidence
from gac_core.combination.gate_margin import margin
from gac_core.combination.geometric import geometric_mean
from gac_core.combination.interface import Combiner, Gate
from gac_core.combination.power import PowerMean
from gac_core.combination.safe import Verification, selective_mean
from gac_core.combination.tables import CERTIFIABLE, COMBINERS, GATES, combiner_named, gate_named

__all__ = [
    "CERTIFIABLE",
    "COMBINERS",
    "GATES",
    "Combiner",
    "Gate",
    "PowerMean",
    "Verification",
    "arithmetic_mean",
    "combiner_named",
    "confidence",
    "gate_named",
    "geometric_mean",
    "margin",
    "selective_mean",
]
