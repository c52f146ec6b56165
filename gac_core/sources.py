"""Where a framework's model gets its ensemble from: models, a loaded ensemble, a configuration, or the environment.

What wrappers for frameworks share; knows nothing of them, nor of requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.effective import gate_index
from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, quote
from gac_core.loading import ModelLike, from_environment
from gac_core.sampling import SamplingParams

ENSEMBLE_FIELDS = (
    *("weights", "dtype", "device", "device_map", "quantization", "commit", "alignment", "combine", "gate_rule"),
    *("max_batch_size", "max_queue", "prefill_tokens", "prefill_seconds", "cache_gib", "deterministic", "stuck_after"),
)
"""The names of the settings that say how models are loaded, meet and are served, which go with models alone."""


def open_ensemble(
    models: Sequence[ModelLike] | None = None,
    ensemble: Ensemble | None = None,
    config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
    params: SamplingParams | None = None,
    **loading: Any,
) -> Ensemble:
    """Returns the ensemble that a wrapper shall hold, shared with whoever holds one of the same settings.

    Args:
        models: Names on a model hub, folders, mappings or `MemberConfig`.
        ensemble: A loaded ensemble, in place of models.
        config: A configuration, a mapping of its fields, or the path of a YAML file, in place of models.
        params: The wrapper's default parameters. Their gate is checked against the configuration before anything is
            loaded. Default None.
        **loading: Values of `ENSEMBLE_FIELDS`; None: not given. With none of the three above, the configuration is the
            one that the environment variable ``GAC_CONFIG`` names. Beside an ensemble or a configuration, those that
            are parameters of a request too (``weights``, ``combine``, ...) change nothing of the ensemble.

    Raises:
        ConfigError: Several are given, or loading settings beside an ensemble or a configuration, or a value is wrong.
        RequestError: The gate of ``params`` is not a member.
        ModelLoadError: A model cannot be loaded.
    """
    given = {"models": models, "ensemble": ensemble, "config": config}
    several = [name for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise ConfigError(f"give one of models, ensemble and config, not {' and '.join(several)}")
    unused = sorted(name for name, value in loading.items() if value is not None and name not in SamplingParams.names())
    if unused and (ensemble is not None or config is not None):
        raise ConfigError(f"{', '.join(unused)} goes with models=[...]; put it into the configuration instead")
    if ensemble is not None and not isinstance(ensemble, Ensemble):
        raise ConfigError(f"ensemble must be a gac_core.Ensemble, not {quote(ensemble)}")
    if ensemble is not None:
        plan = ensemble.config
    elif config is None:
        plan = from_environment(models, **loading)
    elif isinstance(config, EnsembleConfig):
        plan = config
    else:
        plan = EnsembleConfig.from_dict(config) if isinstance(config, Mapping) else EnsembleConfig.from_yaml(config)
    if params is not None and params.gate is not None:
        gate_index(plan.names, params.gate)
    return ensemble if ensemble is not None else Ensemble.shared_config(plan)
