"""What to load: the arguments of `Ensemble.load`, or the environment, as one configuration; and its members."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from gac_core.checks import check_list
from gac_core.config import EnsembleConfig
from gac_core.errors import ConfigError, UnknownArgumentError
from gac_core.member_config import MemberConfig, as_member
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.loaded import LoadedModel
from gac_core.model.member import Member
from gac_core.model.options import MemberOptions

ModelLike = str | Path | Mapping[str, Any] | MemberConfig
CONFIG_VARIABLE = "GAC_CONFIG"
DEVICE_VARIABLE = "GAC_DEVICE"


def load_members(config: EnsembleConfig) -> list[Member]:
    """Loads the members of a configuration; the GPUs are used in turn if there are any.

    All members are found and checked before the weights of the first are read.

    Raises:
        ModelLoadError: A model cannot be loaded.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    checkpoints = [
        Checkpoint.find(member, f"cuda:{index % gpus}" if gpus else "cpu")
        for index, member in enumerate(config.members)
    ]
    options = MemberOptions(
        cache_bytes=int(config.cache_gib * 2**30),
        prefill_tokens=config.prefill_tokens,
        prefill_seconds=config.prefill_seconds / len(checkpoints),
        deterministic=config.deterministic,
    )
    return [_member(checkpoint, options) for checkpoint in checkpoints]


def _member(checkpoint: Checkpoint, options: MemberOptions) -> Member:
    config = checkpoint.config
    loaded = LoadedModel.load(checkpoint, config.called)
    return Member(config.called, loaded, replace(options, context=config.context, compile=config.compile))


def from_environment(
    models: Sequence[ModelLike] | None,
    *,
    weights: Sequence[float] | None = None,
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
    config = EnsembleConfig.from_yaml(path)
    written = {field.name: getattr(config, field.name) for field in fields(config) if field.name != "members"}
    given = {key: value for key, value in settings.items() if value is not None}
    if "deterministic" in given:
        # The drafts that were resolved from the other value.
        written.pop("drafts")
    return configured(config.members, weights=weights, device=device, **{**written, **given})


def configured(
    models: Sequence[ModelLike],
    *,
    weights: Sequence[float] | None = None,
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
        weights = check_list(ConfigError, "weights", weights, "numbers")
        if len(weights) != len(members):
            raise ConfigError(f"{len(weights)} weights for {len(members)} members; give one each")
        members = [replace(member, weight=weight) for member, weight in zip(members, weights, strict=True)]
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
