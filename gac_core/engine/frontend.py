"""Connects an ensemble with an engine."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gac_core.config import EnsembleConfig
from gac_core.engine.assembly import compiler_of, ensemble_members, union_of
from gac_core.engine.engines import ENGINES, Place
from gac_core.engine.input_processor import InputProcessor
from gac_core.engine.mailbox import Client
from gac_core.engine.session import Session
from gac_core.errors import ConfigError, quote
from gac_core.events import Listener
from gac_core.executor.base import ExecutorMember
from gac_core.executor.local import LocalExecutor
from gac_core.executor.ray.tokens import require_token
from gac_core.model.pool import default_pool
from gac_core.tokenization.vocabulary import UnionVocabulary


@dataclass(frozen=True)
class Frontend:
    """What an ensemble needs to turn prompts into requests and to have them answered.

    Attributes:
        config: Its configuration.
        members: Its members.
        union: The union vocabulary of its members.
        input_processor: Makes requests.
        session: Its access to the engine.
        progress_shown: Whether progress bars were shown for it.
    """

    config: EnsembleConfig
    members: Sequence[ExecutorMember]
    union: UnionVocabulary
    input_processor: InputProcessor
    session: Session
    progress_shown: bool = False


def connect(
    members: Sequence[ExecutorMember],
    config: EnsembleConfig,
    release: Callable[[], None] = lambda: None,
    shared: bool = False,
    place: Place | None = None,
) -> Frontend:
    """Returns an ensemble's connection with an engine, which is started if there is none.

    Args:
        members: The members, in the order of ``config.members``.
        config: The ensemble's configuration.
        release: Called once the engine does not use the members any more. Default: nothing.
        shared: Whether other ensembles in the same place use the same engine. Default False.
        place: Where the members run. Default: in this process, on their devices.

    Raises:
        ConfigError: The configuration names another executor than that of the members.
    """
    if place is None:
        if config.executor != "local":
            raise ConfigError(
                f"executor={quote(config.executor)} loads the members itself; use Ensemble.load or "
                "Ensemble.from_config, not members of this process"
            )
        place = Place(frozenset(member.device for member in members), _local_executor)
    union = union_of([member.tokenizer for member in members])
    named = ensemble_members(members, union, config)
    ensemble_id = uuid.uuid4().hex
    input_processor = InputProcessor(named, union, compiler_of(union), config, ensemble_id)
    client = Client(
        ensemble_id=ensemble_id,
        members=list(members),
        names={member.member_id: member.name for member in named},
        max_batch_size=config.max_batch_size,
        max_requests=config.max_batch_size + config.max_queue,
        stuck_after=config.stuck_after,
        release=release,
    )
    return Frontend(config, client.members, union, input_processor, ENGINES.open(client, place, shared))


def _local_executor(listener: Listener) -> LocalExecutor:
    return LocalExecutor(listener=listener)


def connect_pooled(config: EnsembleConfig) -> Frontend:
    """Returns the connection of an ensemble whose members are in the process's pool of models or actors.

    Those that are not are loaded.

    Raises:
        ConfigError: A setting does not fit a model, or Ray cannot be reached.
        ModelLoadError: A model cannot be loaded.
    """
    if config.executor == "ray":
        return _connect_actors(config)
    lease = default_pool().acquire(config)
    try:
        return replace(connect(lease.members, config, lease.close, shared=True), progress_shown=lease.progress_shown)
    except BaseException:
        lease.close()
        raise


def _connect_actors(config: EnsembleConfig) -> Frontend:
    """Returns the connection of an ensemble whose members are in actors of Ray."""
    require_token(config.ray_address)
    try:
        from gac_core.executor.ray.executor import RayExecutor
        from gac_core.executor.ray.pool import ray_pool
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "ray":
            raise
        raise ConfigError("executor='ray' needs Ray; install it with: pip install 'gac-ensemble[ray]'") from error
    lease = ray_pool().acquire(config)
    try:
        key = ("ray", frozenset(member.member_id for member in lease.members))
        place = Place(key, RayExecutor)
        return connect(lease.members, config, lease.close, shared=True, place=place)
    except BaseException:
        lease.close()
        raise
