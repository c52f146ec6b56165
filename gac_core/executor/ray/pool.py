"""`RayPool`: the actors of this process's ensembles, which share those of equal members."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.executor.ray import cluster as connection
from gac_core.executor.ray.actor import Threads
from gac_core.executor.ray.cluster import Cluster
from gac_core.executor.ray.placement import Placement, Reservation
from gac_core.executor.ray.remote_member import RemoteMember
from gac_core.executor.ray.supervisor import MemberSupervisor
from gac_core.member_config import MemberConfig
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.model_key import ModelKey
from gac_core.model.options import MemberOptions
from gac_core.model.places import find_source
from gac_core.model.shared_table import Entry, SharedTable

_ids = itertools.count()


@dataclass(frozen=True)
class ActorKey:
    """Identifies an actor; members with equal keys share one.

    Attributes:
        model: The model.
        options: How the member runs it.
        reservation: What it reserves.
        session: The connection with Ray.
        copy: 0 for the first member of an ensemble with these; a further one needs a KV cache of its own.
    """

    model: ModelKey
    options: MemberOptions
    reservation: Reservation
    session: str
    copy: int


class _PooledActor:
    """An actor and the member of it, which is made once the actor has loaded it."""

    def __init__(self, config: MemberConfig, supervisor: MemberSupervisor, deterministic: bool) -> None:
        self.supervisor = supervisor
        self._config = config
        self._deterministic = deterministic
        self._lock = threading.Lock()
        # The tokenizer and the processor.
        self._loaded: tuple[Any, Any] | None = None
        self._member: RemoteMember | None = None

    def load_tokenizer(self) -> None:
        """Loads the tokenizer, and the processor if there is one, once."""
        with self._lock:
            if self._loaded is None:
                self._loaded = _load_tokenizer(self._config)

    def member(self) -> RemoteMember:
        """Waits for the actor and returns the member."""
        with self._lock:
            if self._member is None:
                name = self._config.called
                member_id = f"{name}-ray-{next(_ids)}"
                assert self._loaded is not None, "the tokenizer is loaded first"
                tokenizer, processor = self._loaded
                self._member = RemoteMember(name, member_id, self.supervisor, tokenizer, self._deterministic, processor)
            return self._member


class RayLease:
    """The members of one ensemble, in actors. Safe to close from any thread.

    Attributes:
        members: The members, in the order of the configuration and with its names. They are usable until `close`.
    """

    def __init__(self, members: Sequence[RemoteMember], release: Callable[[], None]) -> None:
        self.members = list(members)
        self._release = release
        self._lock = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    def close(self) -> None:
        """Releases the members; idempotent. The last lease of a member ends its actor. Does nothing in a fork."""
        if self._process != os.getpid():
            return
        with self._lock:
            closed, self._closed = self._closed, True
        if not closed:
            self._release()


class RayPool:
    """Starts an actor per member and shares the actors of equal members. Safe to use from many threads."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins anew, in a forked process."""
        self._actors: SharedTable[ActorKey, _PooledActor] = SharedTable(lambda actor: actor.supervisor.close())

    def end(self) -> None:
        """Ends all actors when Python exits."""
        for _, actor, _ in self._actors.items():
            actor.supervisor.close()
        connection.end()

    def acquire(self, config: EnsembleConfig) -> RayLease:
        """Returns the members of an ensemble, starting actors for those that have none.

        No model is loaded in this process, only tokenizers.

        Args:
            config: The ensemble.

        Raises:
            ConfigError: Ray cannot be reached, or a setting does not fit a model.
            ModelLoadError: A folder does not exist, or a member has no place on the cluster or cannot be loaded there.
            EngineClosedError: Ray was initialised before this process was forked.
        """
        for member in config.members:
            _check_paths(member)
        cluster = Cluster(config.ray_address)
        entries: list[Entry[ActorKey, _PooledActor]] = []

        def release() -> None:
            for entry in reversed(entries):
                self._actors.release(entry)
            cluster.close()

        try:
            members = [_absolute(member) for member in config.members]
            for key, create in self._new_actors(members, config, cluster):
                entries.append(self._actors.acquire(key, create))
            for entry in entries:
                entry.value.load_tokenizer()
            for entry in entries:
                entry.value.supervisor.placement.wait(cluster)
            loaded = [entry.value.member() for entry in entries]
        except BaseException:
            release()
            raise
        return RayLease([member.renamed(name) for member, name in zip(loaded, config.names, strict=True)], release)

    def _new_actors(
        self, members: Sequence[MemberConfig], config: EnsembleConfig, cluster: Cluster
    ) -> list[tuple[ActorKey, Callable[[], _PooledActor]]]:
        """The key of each member, and what starts its actor; those that have none yet are placed as one group."""
        has_gpus = any(node.resources.get("GPU") for node in cluster.nodes())
        keys = _keys(members, config, has_gpus, cluster.session)
        running = {key for key, _, _ in self._actors.items()}
        group = [index for index, key in enumerate(keys) if key not in running]
        placement = lru_cache(maxsize=1)(
            lambda: Placement([members[index].called for index in group], [keys[index].reservation for index in group])
        )

        def start(index: int) -> _PooledActor:
            member, reservation = members[index], keys[index].reservation
            if index in group:
                place, bundle = placement(), group.index(index)
            else:
                # Another ensemble has just closed the one that was running.
                place, bundle = Placement([member.called], [reservation]), 0
            own, threads = _alone(reservation.placed(member), config), _threads(member, len(members))
            supervisor = MemberSupervisor(member.called, own, threads, place, bundle)
            return _PooledActor(member, supervisor, config.deterministic)

        return [(key, partial(start, index)) for index, key in enumerate(keys)]


def _alone(member: MemberConfig, config: EnsembleConfig) -> EnsembleConfig:
    """The configuration that an actor loads."""
    return EnsembleConfig(
        (member,),
        cache_gib=config.cache_gib,
        document_cache_gib=config.document_cache_gib,
        prefill_tokens=config.prefill_tokens,
        deterministic=config.deterministic,
        max_batch_size=config.max_batch_size,
    )


def _threads(member: MemberConfig, members: int) -> Threads:
    given = os.environ.get("OMP_NUM_THREADS", "")
    number = max(1, round(member.num_cpus)) if member.num_cpus else int(given) if given.isdecimal() else None
    return Threads(number or None, members)


def _keys(members: Sequence[MemberConfig], config: EnsembleConfig, has_gpus: bool, session: str) -> list[ActorKey]:
    keys: list[ActorKey] = []
    for member in members:
        reservation = Reservation.of(member, has_gpus)
        own = MemberOptions.of(member, config)
        key = ActorKey(ModelKey.of(member, "ray"), own, reservation, session, 0)
        keys.append(replace(key, copy=sum(replace(other, copy=0) == key for other in keys)))
    return keys


def _check_paths(config: MemberConfig) -> None:
    """Raises a `ModelLoadError` for a folder or file that does not exist here; downloads nothing."""
    for path, file in ((config.model, config.gguf_file), (config.tokenizer, None)):
        if path is not None:
            find_source(config.model, path, file if os.path.isdir(path) else None)


def _absolute(member: MemberConfig) -> MemberConfig:
    """Settings with absolute paths, since actors run in other folders."""
    changes = {
        field: os.path.abspath(path)
        for field in ("model", "tokenizer")
        if (path := getattr(member, field)) is not None and Path(path).exists()
    }
    return replace(member, name=member.called, **changes)


def _load_tokenizer(config: MemberConfig) -> tuple[Any, Any]:
    """Loads a member's tokenizer and processor, or None if it has none; its folder need not hold weights."""
    checkpoint = Checkpoint.without_weights(config)
    processor = checkpoint.load_processor()
    return checkpoint.load_tokenizer(processor), processor


_pool = RayPool()

# Ray's own function, which was registered before and so is called after this one, tears down what calls use.
atexit.register(_pool.end)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.reset)


def ray_pool() -> RayPool:
    """Returns the pool of this process, which ensembles with ``executor="ray"`` use."""
    return _pool
