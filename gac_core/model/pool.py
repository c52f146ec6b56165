"""`ModelPool`: loads each model once per process and shares it, with its KV cache, between ensembles.

Three levels are shared. *Weights* are identified by a `WeightsKey`: what is loaded, in which dtype, on which device. A
*model* is weights with a tokenizer and its chat template, identified by a `ModelKey`. A *member* runs a model with a KV
cache of its own and is identified by its model and `MemberOptions`.
Ensembles that differ in names, weights, gate or combination alone share members.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gac_core.config import EnsembleConfig
from gac_core.errors import EngineClosedError, GaCError, listed
from gac_core.member_config import MemberConfig
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.member import Member
from gac_core.model.model_key import ModelKey, WeightsKey
from gac_core.model.placing import MemberKey, PlacedMember, place_members
from gac_core.model.progress import LoadingProgress, Report, bars_shown
from gac_core.model.shared_models import SharedModel, SharedModels
from gac_core.model.shared_table import Entry, SharedTable
from gac_core.threads import in_parallel


@dataclass(frozen=True)
class ModelInfo:
    """The weights of a model in a pool.

    Attributes:
        name: The folder, GGUF file or hub name that it was loaded from.
        dtype: The dtype of its weights, such as ``"bfloat16"``.
        device: Where its logits are computed, such as ``"cuda:0"``.
        nbytes: Bytes of its weights.
        references: How many members of open leases use it.
    """

    name: str
    dtype: str
    device: str
    nbytes: int
    references: int


@dataclass
class _PooledMember:
    """A member and its reference to its model."""

    member: Member
    model: Entry[ModelKey, SharedModel]


class References:
    """The references of one lease to the members of a pool.

    Args:
        table: The members of the pool.
    """

    def __init__(self, table: SharedTable[MemberKey, _PooledMember]) -> None:
        self._table = table
        self._lock = threading.Lock()
        self._entries: list[Entry[MemberKey, _PooledMember]] = []
        self._process = os.getpid()

    def add(self, key: MemberKey, create: Callable[[], _PooledMember]) -> Member:
        """Returns a member of the pool, which is created if it is not there."""
        entry = self._table.acquire(key, create)
        self._entries.append(entry)
        return entry.value.member

    def release(self) -> None:
        """Gives all members back, once."""
        if self._process != os.getpid():
            # Locks may be held by threads that do not exist here, and devices cannot be used.
            return
        with self._lock:
            entries, self._entries = self._entries, []
        for entry in reversed(entries):
            self._table.release(entry)


class Lease:
    """The members of one ensemble, acquired from a pool. Safe to close from any thread.

    Attributes:
        members: The members, in the order of the configuration and with its names. They are usable until `close`.
        progress_shown: Whether progress bars were shown while they were loaded.
    """

    def __init__(self, members: Sequence[Member], references: References, progress_shown: bool = False) -> None:
        self.members = list(members)
        self.progress_shown = progress_shown
        self._references = references

    def close(self) -> None:
        """Releases the members; idempotent.

        The last lease of a member frees its KV cache, and the last one of a model its weights. That waits for a forward
        that is running on the model; an engine closes its lease in its own thread after its last step. Does nothing in
        a forked process, which cannot use the models of its parent.
        """
        self._references.release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class ModelPool:
    """Loads models once and shares them. Safe to use from many threads.

    A forked process begins with an empty pool: the models of its parent belong to threads that do not exist there.
    """

    def __init__(self) -> None:
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._closed = False
        self._models = SharedModels()
        self._members: SharedTable[MemberKey, _PooledMember] = SharedTable(self._close_member)

    def acquire(self, config: EnsembleConfig) -> Lease:
        """Returns the members of an ensemble, loading those that are not in the pool.

        Members without a device use that of their model if it is loaded; the others are placed by their sizes on
        ``config.devices``. All checkpoints are checked before any weights are read. Members load in a thread each;
        transformers reads one model at a time. Of threads that need the same model one loads it and the others wait.

        Args:
            config: The ensemble. Its ``members``, ``cache_gib``, ``document_cache_gib``, ``prefill_tokens`` and
                ``deterministic`` decide what is shared, and ``devices`` and ``max_batch_size`` where the others are
                placed.

        Raises:
            ModelLoadError: A model cannot be loaded; nothing of this call stays in the pool.
            PlacementError: A member does not fit on the devices.
            ConfigError: A member's context is longer than its model can read, or a device cannot be used.
            EngineClosedError: The pool is closed.
        """
        if self._closed:
            raise EngineClosedError("the model pool is closed; use another one")
        placed = place_members(config, self._models.keys())
        references = References(self._members)
        try:
            members = self._load(placed, references, config.progress)
        except BaseException:
            references.release()
            raise
        named = zip(members, config.names, strict=True)
        shown = bars_shown(config.progress) and any(member.checkpoint is not None for member in placed)
        return Lease([member.renamed(name) for member, name in named], references, shown)

    def models(self) -> list[ModelInfo]:
        """Returns the models that are loaded, by name, dtype and device.

        Models that differ in tokenizer or chat template alone have the same weights and are listed once.
        """
        references: dict[WeightsKey, int] = {}
        for member_key, _, count in self._members.items():
            weights = member_key.model.weights
            references[weights] = references.get(weights, 0) + count
        models = [
            ModelInfo(
                name=_name(key.settings),
                dtype=str(loaded.dtype).removeprefix("torch."),
                device=str(loaded.device),
                nbytes=loaded.nbytes,
                references=references.get(key, 0),
            )
            for key, loaded in self._models.by_weights().items()
        ]
        return sorted(models, key=lambda model: (model.name, model.dtype, model.device))

    def close(self) -> None:
        """Closes the pool for good: `acquire` raises afterwards. Idempotent.

        Models are freed by their leases; a pool whose leases are closed holds none.

        Raises:
            GaCError: Models are in use, or this is the pool of `default_pool`; the pool stays open.
        """
        if self is _default:
            raise GaCError(
                "the default pool cannot be closed, since Ensemble.load would fail from then on; close the ensembles "
                "to free their models, or close a ModelPool of your own"
            )
        used = [model.name for model in self.models()]
        if used:
            names = listed(used)
            raise GaCError(f"the model pool cannot be closed while models are in use: {names}; close their ensembles")
        self._closed = True

    # ---- internal

    def _load(self, placed: Sequence[PlacedMember], references: References, progress: bool | None) -> list[Member]:
        """The members of an ensemble, those that are not loaded in a thread each."""
        names = [member.config.called for member in placed if member.checkpoint is not None]
        with LoadingProgress(names, progress) as bars:
            jobs = [
                partial(references.add, member.key, partial(self._create_member, member, bars.of(member.config.called)))
                for member in placed
            ]
            return in_parallel(jobs) if len(names) > 1 else [job() for job in jobs]

    def _create_member(self, placed: PlacedMember, report: Report) -> _PooledMember:
        config, key = placed.config, placed.key

        def find() -> Checkpoint:
            # Without a checkpoint the model was loaded when `acquire` began, and its last lease was closed since.
            return placed.checkpoint or Checkpoint.find(key.model.weights.placed(config))

        model = self._models.acquire(key.model, find, config.called, report)
        try:
            member = Member(config.called, model.value.loaded, key.options)
            report("ready", 1.0)
            return _PooledMember(member, model)
        except BaseException:
            self._models.release(model)
            raise

    def _close_member(self, pooled: _PooledMember) -> None:
        pooled.member.close()
        self._models.release(pooled.model)
        if pooled.member.device.type == "cuda":
            # What was freed goes back to the device, for other processes as well.
            torch.cuda.empty_cache()


def _name(settings: MemberConfig) -> str:
    return settings.model if settings.gguf_file is None else os.path.join(settings.model, settings.gguf_file)


_pools: weakref.WeakSet[ModelPool] = weakref.WeakSet()
# What a forked process inherits; kept, since freeing it there would use locks and devices that it cannot use.
_inherited: list[Any] = []
_default = ModelPool()


def default_pool() -> ModelPool:
    """Returns the pool of this process, which `Ensemble.load` uses."""
    return _default


def _after_fork() -> None:
    for pool in list(_pools):
        _inherited.append((pool._models, pool._members))
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
