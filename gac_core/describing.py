"""The methods of `Ensemble` that describe it in a line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gac_core.config import EnsembleConfig
from gac_core.effective import default_weights
from gac_core.errors import listed
from gac_core.placement.sizes import format_bytes

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.executor.base import ExecutorMember

logger = logging.getLogger("gac_core")


class Describing:
    """The methods of `Ensemble` that describe it in a line."""

    config: EnsembleConfig
    _members: Sequence[ExecutorMember]
    _input_processor: InputProcessor

    def summary(self) -> str:
        """Returns one line: members with their weights, gate and threshold, devices, and memory.

        It is logged by the logger ``gac_core`` at the level INFO when the ensemble is opened, and printed on stderr
        after progress bars. The memory is that of the weights, those that members share counted once, and the limit of
        the members' KV caches and of documents kept beside them (``cache_gib``, ``document_cache_gib``), which grow as
        they are used.
        """
        count = len(self._members)
        weights = default_weights(self.config)
        members = ", ".join(f"{name} {weight:g}" for name, weight in zip(self.config.names, weights, strict=True))
        source = f", weights by {self.config.weights}" if isinstance(self.config.weights, str) else ""
        nbytes = {member.weights_id: member.weight_bytes for member in self._members}
        own = len({member.member_id for member in self._members}) * 2**30
        caches, documents = int(self.config.cache_gib * own), int(self.config.document_cache_gib * own)
        parts = (
            f"{count} member{'s' if count > 1 else ''}: {members}{source}",
            f"{_gate(self._input_processor)}, {_threshold(self.config)}",
            _devices(self._members),
            f"{format_bytes(sum(nbytes.values()))} of weights, KV caches of up to {format_bytes(caches)}, documents of "
            f"up to {format_bytes(0 if self.config.deterministic else documents)}",
        )
        return "; ".join(parts)

    def __repr__(self) -> str:
        gate = self._input_processor.defaults.gate
        return f"<{type(self).__name__} of {listed(self.config.names)}; gate {gate}, {_threshold(self.config)}>"

    def _introduce(self, printed: bool) -> None:
        """Logs the summary and warnings about the settings; prints the summary on stderr if wanted."""
        line = self.summary()
        logger.info("%s", line)
        self._input_processor.defaults.warn()
        if printed and sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def _gate(input_processor: InputProcessor) -> str:
    return f"gate {input_processor.defaults.gate} ({input_processor.defaults.reason})"


def _threshold(config: EnsembleConfig) -> str:
    return "no threshold" if config.threshold is None else f"threshold {config.threshold:g}"


def _devices(members: Sequence[ExecutorMember]) -> str:
    """Returns where members run, such as ``"cpu"`` or ``"a and b on cuda:0, c on cuda:1"``."""
    places: dict[str, list[str]] = {}
    for member in members:
        places.setdefault(", ".join(member.devices), []).append(member.name)
    if len(places) == 1:
        return next(iter(places))
    return ", ".join(f"{' and '.join(names)} on {place}" for place, names in places.items())
