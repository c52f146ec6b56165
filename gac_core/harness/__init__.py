"""lm-evaluation-harness: `GaCLM`, the model ``gac``, and tasks on local data. Needs the extra ``lm-eval``.

``python -m gac_core.harness`` is the command line of lm-evaluation-harness with both.
"""

from __future__ import annotations

from gac_core.errors import ConfigError

try:
    import lm_eval  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise ConfigError(
        "gac_core.harness needs lm-evaluation-harness; install it with: pip install 'gac-ensemble[lm-eval]'"
    ) from error

from gac_core.harness.data import TASKS
from gac_core.harness.model import GaCLM

__all__ = ["TASKS", "GaCLM"]
