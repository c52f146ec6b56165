"""Connects an ensemble with an engine."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gac_core.config import EnsembleConfig
from gac_core.engine.assembly import compiler_of, ensemble_members, union_of
from gac_core.engine.engines import ENGINES
from gac_core.engine.input_processor import InputProcessor
from gac_core.engine.mailbox import Client
from gac_core.engine.session import Session
from gac_core.executor.base import ExecutorMember
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
    """

    config: EnsembleConfig
    members: Sequence[ExecutorMember]
    union: UnionVocabulary
    input_processor: InputProcessor
    session: Session


def connect(
    members: Sequence[ExecutorMember],
    config: EnsembleConfig,
    release: Callable[[], None] = lambda: None,
    shared: bool = False,
) -> Frontend:
    """Returns an ensemble's connection with an engine, which is started if there is none.

    Args:
        members: The members, in the order of ``config.members``.
        config: The ensemble's configuration.
        release: Called once the engine does not use the members any more. Default: nothing.
        shared: Whether other ensembles on the same devices use the same engine. Default False.
    """
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
    return Frontend(config, client.members, union, input_processor, ENGINES.open(client, shared))


def connect_pooled(config: EnsembleConfig) -> Frontend:
    """Returns the connection of an ensemble whose members are in the process's model pool, loaded where needed.

    Raises:
        ConfigError: A setting does not fit a model.
        ModelLoadError: A model cannot be loaded.
    """
    lease = default_pool().acquire(config)
    try:
        return connect(lease.members, config, lease.close, shared=True)
    except BaseException:
        lease.close()
        raise
