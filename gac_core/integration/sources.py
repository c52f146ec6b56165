"""Which ensemble a framework's model uses: that of its models, a loaded one, a configuration's or the environment's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.effective import gate_index, request_weights
from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, quote
from gac_core.integration.fields import LOADING_FIELDS
from gac_core.loading import ModelLike, from_environment
from gac_core.member_config import MemberConfig
from gac_core.sampling import SamplingParams


def open_ensemble(
    models: Sequence[ModelLike] | None = None,
    ensemble: Ensemble | None = None,
    config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
    params: SamplingParams | None = None,
    **loading: Any,
) -> Ensemble:
    """Returns a wrapper's ensemble, which shares its models with the other ensembles of the process.

    Args:
        models: Names on a model hub, folders, mappings or `MemberConfig`.
        ensemble: A loaded ensemble, in place of models.
        config: A configuration, a mapping of its fields, or the path of a YAML file, in place of models.
        params: The wrapper's default parameters. Their gate and weights are checked against the configuration before
            anything is loaded. Default None.
        **loading: Values of `ENSEMBLE_FIELDS`; None: not given. With none of the three above, the configuration is the
            one that the environment variable ``GAC_CONFIG`` names. ``weights``, ``alignment``, ``combine`` and
            ``gate_rule`` are ignored beside an ensemble or a configuration, since a wrapper sends them with its calls;
            so are weights that contain a 0, which leave a member out of a request but are not an ensemble's.

    Raises:
        ConfigError: Several are given, or settings of `LOADING_FIELDS` beside an ensemble or a configuration, or a
            value is wrong.
        RequestError: The gate or the weights of ``params`` do not fit the members.
        ModelLoadError: A model cannot be loaded.
    """
    given = {"models": models, "ensemble": ensemble, "config": config}
    several = [name for name, value in given.items() if value is not None]
    if len(several) > 1:
        raise ConfigError(f"give one of models, ensemble and config, not {' and '.join(several)}")
    unused = sorted(name for name, value in loading.items() if value is not None and name in LOADING_FIELDS)
    if unused and (ensemble is not None or config is not None):
        raise ConfigError(f"{', '.join(unused)} goes with models=[...]; put it into the configuration instead")
    if ensemble is not None and not isinstance(ensemble, Ensemble):
        raise ConfigError(f"ensemble must be a gac_core.Ensemble, not {quote(ensemble)}")
    plan = _plan(models, ensemble, config, loading)
    if params is not None:
        check_defaults(plan, params)
    return ensemble if ensemble is not None else Ensemble.from_config(plan)


def _plan(
    models: Sequence[ModelLike] | None,
    ensemble: Ensemble | None,
    config: EnsembleConfig | Mapping[str, Any] | str | Path | None,
    loading: Mapping[str, Any],
) -> EnsembleConfig:
    """Returns the configuration of the ensemble; arguments as in `open_ensemble`."""
    if ensemble is not None:
        return ensemble.config
    if config is None:
        own = models is not None
        return _with_weights(from_environment(models, **{**loading, "weights": None}), loading.get("weights"), own)
    if isinstance(config, EnsembleConfig):
        return config
    return EnsembleConfig.from_dict(config) if isinstance(config, Mapping) else EnsembleConfig.from_yaml(config)


def check_defaults(config: EnsembleConfig, params: SamplingParams) -> None:
    """Checks the gate and the weights of a wrapper's default parameters, at any threshold, which may be set later.

    Raises:
        RequestError: They do not fit the members.
    """
    member_weights(config, params)
    if params.gate is not None:
        gate_index(config.names, params.gate)


def member_weights(config: EnsembleConfig, params: SamplingParams) -> list[float]:
    """Returns the weight of each member in a request, in the ensemble's order.

    Args:
        config: The ensemble's configuration.
        params: The request's parameters.

    Raises:
        RequestError: The weights of ``params`` do not fit the members.
    """
    return request_weights(config, params.weights)


def _with_weights(config: EnsembleConfig, weights: object, own: bool) -> EnsembleConfig:
    """Returns a configuration with other weights, unless one of them is 0.

    Args:
        config: The configuration.
        weights: The weights; None: its own.
        own: Whether they must not contradict those of its members.
    """
    if weights is None:
        return config
    members = tuple(replace(member, weight=1.0) for member in config.members)
    if isinstance(weights, str):
        if own:
            _check_own_weights(config.members, weights)
        return replace(config, members=members, weights=weights)
    resolved = member_weights(config, SamplingParams(weights=weights))  # type: ignore[arg-type]
    if own:
        _check_own_weights(config.members, resolved)
    return config if 0 in resolved else replace(config, members=members, weights=resolved)


def _check_own_weights(members: Sequence[MemberConfig], weights: str | Sequence[float]) -> None:
    """Checks that a wrapper's weights do not contradict those that its members have themselves.

    Args:
        members: The members; a weight of 1 is none of its own.
        weights: ``"auto"``, ``"perplexity"``, or the weight of each member.

    Raises:
        ConfigError: They do.
    """
    wanted = [None] * len(members) if isinstance(weights, str) else weights
    for member, weight in zip(members, wanted, strict=True):
        if member.weight not in (1, weight):
            raise ConfigError(
                f"weights={quote(weights)} and the weight {member.weight:g} of member {quote(member.called)} exclude "
                "each other; leave one of them out"
            )
