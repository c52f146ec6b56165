"""`SharedModels`: the models of a pool, of which those that differ in tokenizer or chat template share weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gac_core.model.checkpoint import Checkpoint
from gac_core.model.checkpoint_checks import check_tokenizer
from gac_core.model.loaded import LoadedModel
from gac_core.model.model_key import ModelKey, WeightsKey
from gac_core.model.progress import Report, silent
from gac_core.model.shared_table import Entry, SharedTable

# Fractions of a progress bar at which weights and checks begin.
_WEIGHTS, _CHECKS = 0.2, 0.9


@dataclass
class SharedModel:
    """A model and its reference to its weights."""

    loaded: LoadedModel
    weights: Entry[WeightsKey, Any]


class SharedModels:
    """Loads each model once, and its weights once for all tokenizers and chat templates. Safe to use from many threads.

    Every tokenizer is a separate object, so that a chat template applies to its own members alone.
    """

    def __init__(self) -> None:
        self._weights: SharedTable[WeightsKey, Any] = SharedTable()
        self._models: SharedTable[ModelKey, SharedModel] = SharedTable(
            lambda model: self._weights.release(model.weights)
        )

    def acquire(
        self, key: ModelKey, find: Callable[[], Checkpoint], name: str, report: Report = silent
    ) -> Entry[ModelKey, SharedModel]:
        """Returns a model, which is loaded if it is not there; `release` gives it back.

        Args:
            key: The model.
            find: Returns its checkpoint.
            name: The member's name, for errors and warnings.
            report: Called with the stages of loading. Default: nothing.

        Raises:
            ModelLoadError: Something could not be loaded; nothing of it is kept.
        """
        return self._models.acquire(key, lambda: self._load(key, find(), name, report))

    def release(self, entry: Entry[ModelKey, SharedModel]) -> None:
        """Gives a model back; the last reference frees the tokenizer, and the last one of the weights frees these."""
        self._models.release(entry)

    def keys(self) -> list[ModelKey]:
        """Returns the models that are loaded, in the order of loading."""
        return [key for key, _, _ in self._models.items()]

    def by_weights(self) -> dict[WeightsKey, LoadedModel]:
        """Returns one model of all weights that are loaded, in the order of loading."""
        models: dict[WeightsKey, LoadedModel] = {}
        for key, model, _ in self._models.items():
            models.setdefault(key.weights, model.loaded)
        return models

    def _load(self, key: ModelKey, checkpoint: Checkpoint, name: str, report: Report) -> SharedModel:
        checkpoint.read_ahead()
        report("tokenizer", 0.0)
        processor = checkpoint.load_processor()
        tokenizer = checkpoint.load_tokenizer(processor)
        report("weights", _WEIGHTS)
        weights = self._weights.acquire(
            key.weights,
            lambda: checkpoint.load_model(lambda part: report("weights", _WEIGHTS + part * (_CHECKS - _WEIGHTS))),
        )
        report("checks", _CHECKS)
        try:
            check_tokenizer(checkpoint.config.model, weights.value, tokenizer)
            loaded = LoadedModel(weights.value, tokenizer, name, _cpu(key.weights.device), processor)
            return SharedModel(loaded, weights)
        except BaseException:
            self._weights.release(weights)
            raise


def _cpu(device: str | None) -> torch.device | None:
    """One of several CPU devices, which torch does not distinguish on tensors; None for any other device."""
    numbered = device is not None and device.startswith("cpu:")
    return torch.device(str(device)) if numbered else None
