"""What to load: the arguments of `Ensemble.load`, or the environment, as one configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from gac_core.checks import check_list
from gac_core.config import EnsembleConfig
from gac_core.errors import ConfigError, UnknownArgumentError
from gac_core.member_config import MemberConfig, Weights, as_member, with_weights

R = TypeVar("R")
_process = os.getpid()

ModelLike = str | Path | Mapping[str, Any] | MemberConfig
CONFIG_VARIABLE = "GAC_CONFIG"
DEVICE_VARIABLE = "GAC_DEVICE"


def fork_safe(load: Callable[[], R]) -> R:
    """Calls ``load``, in a new thread if this process was forked.

    After a fork, the remaining thread refers to OpenMP workers of the parent process, for which torch would wait
    forever. A new thread starts its own workers.
    """
    if os.getpid() == _process:
        return load()
    import torch  # takes more than a second, and what `gac_core` imports by itself does without

    # The first use of torch's thread pool after a fork recreates it, which is not thread-safe.
    with ThreadPoolExecutor(1, initializer=torch.get_num_threads) as pool:
        return pool.submit(load).result()


def from_environment(
    models: Sequence[ModelLike] | None,
    *,
    weights: Weights | None = None,
    device: str | None = None,
    **settings: Any,
) -> EnsembleConfig:
    """Returns the configuration of `Ensemble.shared`'s arguments.

    Args:
        models: As in `Ensemble.load`; None takes the configuration that the environment variable ``GAC_CONFIG`` names.
        weights: As in `Ensemble.load`.
        device: As in `Ensemble.load`; None takes that of the environment variable ``GAC_DEVICE``, if it is set.
        **settings: As in `Ensemble.load`; None: default.

    Raises:
        ConfigError: A setting is wrong, or there are neither models nor ``GAC_CONFIG``.
    """
    device = device or os.environ.get(DEVICE_VARIABLE) or None
    if models is not None:
        return configured(models, weights=weights, device=device, **settings)
    path = os.environ.get(CONFIG_VARIABLE)
    if not path:
        raise ConfigError(
            f"give models=[...] or ensemble=..., or set {CONFIG_VARIABLE} to the path of a YAML configuration"
        )
    config = EnsembleConfig.from_yaml(path, settings.get("calibration"))
    written = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "members"}
    own = written.pop("weights")
    weights = own if weights is None else weights
    given = {key: value for key, value in settings.items() if value is not None}
    if "deterministic" in given:
        # The drafts that were resolved from the other value.
        written.pop("drafts")
    return configured(config.members, weights=weights, device=device, **{**written, **given})


def configured(
    models: Sequence[ModelLike],
    *,
    weights: Weights | None = None,
    dtype: str | None = None,
    device: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: str | None = None,
    **settings: Any,
) -> EnsembleConfig:
    """Returns the configuration of `Ensemble.load`'s arguments.

    Raises:
        ConfigError: A setting is wrong.
        UnknownArgumentError: A setting is not known.
    """
    if isinstance(models, (str, Path, Mapping, MemberConfig)):
        raise ConfigError("models must be a list, for example ['model-a', 'model-b'], not a single one")
    models = check_list(ConfigError, "models", models, "names, folders or configurations")
    members = [as_member(model) for model in models]
    if weights is not None:
        if not isinstance(weights, str):
            weights = [member.weight for member in with_weights(members, weights)]
        settings["weights"] = weights
        members = [replace(member, weight=1.0) for member in members]
    for index, member in enumerate(members):
        changes: dict[str, Any] = {}
        if dtype is not None and member.dtype == "auto":
            changes["dtype"] = dtype
        if quantization is not None and member.quantization is None:
            changes["quantization"] = quantization
        if member.device is None and member.device_map is None:
            changes.update({key: v for key, v in (("device", device), ("device_map", device_map)) if v is not None})
        members[index] = replace(member, **changes)
    known = {field.name for field in fields(EnsembleConfig)} - {"members"}
    if set(settings) - known:
        of_members = {"weights", "dtype", "device", "device_map", "quantization"}
        raise UnknownArgumentError(set(settings) - known, known | of_members)
    given = {key: value for key, value in settings.items() if value is not None}
    return EnsembleConfig.from_dict({"members": members, **given})
