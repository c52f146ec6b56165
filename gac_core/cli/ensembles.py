"""Ensembles and their settings as arguments of commands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import RequestError, quote
from gac_core.evaluation.settings import parse_weights
from gac_core.loading import configured

MODELS_HELP = "A YAML configuration of an ensemble, or folders, GGUF files or hub names of its members."


def load_ensemble(models: Sequence[str], dtype: str | None = None, device: str | None = None) -> Ensemble:
    """Loads the ensemble that the arguments of a command name.

    Args:
        models: The path of one YAML file, which ends in ``.yaml`` or ``.yml``; or one model or more.
        dtype: As in `Ensemble.load`.
        device: As in `Ensemble.load`.

    Raises:
        ConfigError: A setting is wrong.
        ModelLoadError: A model cannot be loaded.
    """
    return Ensemble.from_config(ensemble_config(models, dtype, device))


def ensemble_config(models: Sequence[str], dtype: str | None = None, device: str | None = None) -> EnsembleConfig:
    """Returns the configuration of the ensemble that `load_ensemble` loads; arguments and errors as there."""
    if len(models) != 1 or Path(models[0]).suffix not in (".yaml", ".yml"):
        return configured(models, dtype=dtype, device=device)
    config = EnsembleConfig.from_yaml(models[0])
    written: dict[str, Any] = {each.name: getattr(config, each.name) for each in fields(config)}
    return configured(written.pop("members"), dtype=dtype, device=device, **written)


def weights_argument(text: str, names: Sequence[str]) -> Any:
    """Returns `SamplingParams.weights` from ``1:2:4``, one number per member, or from the name of a rule.

    Raises:
        EvaluationError: It has another form.
    """
    return text if text.isalpha() else parse_weights(text, names)


def threshold_argument(text: str) -> float | None:
    """Returns `SamplingParams.threshold` from a number from 0 to 1, or from ``off``.

    Raises:
        RequestError: It is neither.
    """
    if text.strip().lower() == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise RequestError(f"threshold must be a number from 0 to 1, or off, not {quote(text)}")
    return value


def request_settings(
    names: Sequence[str],
    weights: str | None = None,
    threshold: str | None = None,
    gate: str | None = None,
    combine: str | None = None,
) -> dict[str, Any]:
    """Returns the parameters of requests that options of a command set; None leaves one to the ensemble.

    Args:
        names: Names of the members.
        weights: As `weights_argument`.
        threshold: As `threshold_argument`.
        gate: As `SamplingParams.gate`.
        combine: As `SamplingParams.combine`.

    Raises:
        GaCError: An option has another form.
    """
    found: dict[str, Any] = {"gate": gate, "combine": combine}
    if weights is not None:
        found["weights"] = weights_argument(weights, names)
    if threshold is not None:
        found["threshold"] = threshold_argument(threshold)
    return {name: value for name, value in found.items() if value is not None or name == "threshold"}
