"""What a member reserves on a cluster, and the placement group of the members of an ensemble."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gac_core.errors import ModelLoadError
from gac_core.executor.ray import cluster
from gac_core.executor.ray.cluster import Cluster, Node
from gac_core.member_config import MemberConfig

PLACEMENT_SECONDS = 60.0
"""How long to wait until a cluster has room, which may grow or finish other work."""


@dataclass(frozen=True)
class Reservation:
    """What Ray reserves for one member.

    Attributes:
        gpus: Number of GPUs.
        cpus: Number of CPU cores.
        resources: Custom resources, as pairs sorted by name.
    """

    gpus: float
    cpus: float
    resources: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, config: MemberConfig, has_gpus: bool) -> Reservation:
        """Returns the reservation of a member.

        Args:
            config: Its settings.
            has_gpus: Whether the cluster has GPUs.
        """
        gpus = config.num_gpus
        if gpus is None:
            gpus = 1.0 if has_gpus and config.device != "cpu" else 0.0
        return cls(gpus, config.num_cpus or 0.0, tuple(sorted((config.resources or {}).items())))

    @property
    def amounts(self) -> dict[str, float]:
        """The amount of each resource, in the names of Ray; none that is 0."""
        amounts = {"GPU": self.gpus, "CPU": self.cpus, **dict(self.resources)}
        return {name: amount for name, amount in amounts.items() if amount}

    def placed(self, config: MemberConfig) -> MemberConfig:
        """Returns the settings with which the member is loaded in its actor, which sees its own GPUs alone."""
        config = replace(config, num_gpus=None, num_cpus=None, resources=None)
        if config.device is not None or config.device_map is not None:
            return config
        return config if self.gpus else replace(config, device="cpu")


class Placement:
    """The placement group of some members, one bundle each; removed once all of them are closed. Thread-safe.

    Args:
        names: The members' names, for errors.
        reservations: What each reserves.
    """

    def __init__(self, names: Sequence[str], reservations: Sequence[Reservation]) -> None:
        self._names = list(names)
        self._reservations = list(reservations)
        self._lock = threading.Lock()
        self._users = 0
        # Ray refuses empty bundles.
        bundles = [reservation.amounts or {"CPU": 0.001} for reservation in self._reservations]
        self._group = placement_group(bundles, strategy="PACK")

    def wait(self, on: Cluster) -> None:
        """Waits until all bundles are placed.

        Args:
            on: The cluster.

        Raises:
            ModelLoadError: A member has no place. It is named, with what it needs and what there is.
        """
        until = time.monotonic() + PLACEMENT_SECONDS
        # A Ray that was started here never grows.
        if on.started and self._without_place(on.nodes()) is not None:
            until = time.monotonic()
        while cluster.usable() and not self._group.wait(min(1.0, max(0.01, until - time.monotonic()))):
            if time.monotonic() > until:
                raise self._error(on)

    def options(self, index: int) -> dict[str, Any]:
        """Returns the options of an actor in a bundle."""
        reservation = self._reservations[index]
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
        return {
            "num_cpus": reservation.cpus,
            "num_gpus": reservation.gpus,
            "resources": dict(reservation.resources),
            "scheduling_strategy": strategy,
        }

    def use(self) -> None:
        """Counts one member more that uses its bundle."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """Counts one member less; the last one removes the group."""
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            self.remove()

    def remove(self) -> None:
        """Removes the group, with what runs in it."""
        if cluster.usable():
            remove_placement_group(self._group)

    def _without_place(self, nodes: Sequence[Node]) -> int | None:
        """The first member that has no place on nodes where nothing else runs; None if all have one."""
        free = [dict(node.resources) for node in nodes]
        for index, reservation in enumerate(self._reservations):
            amounts = reservation.amounts
            room = next((node for node in free if all(node.get(name, 0) >= n for name, n in amounts.items())), None)
            if room is None:
                return index
            for name, amount in amounts.items():
                room[name] -= amount
        return None

    def _error(self, on: Cluster) -> ModelLoadError:
        nodes = on.nodes()
        index = self._without_place(nodes)
        used = index is None
        if index is None:
            index = max(range(len(self._names)), key=lambda each: len(self._reservations[each].amounts))
        nodes_text = "; ".join(f"node {node.name}: {_listed(node.resources)}" for node in nodes)
        free = f", of which are free: {_listed(on.free())}" if used else ""
        return ModelLoadError(
            self._names[index],
            f"the Ray cluster has no place for it: it needs {_listed(self._reservations[index].amounts) or 'nothing'} "
            f"on one node{'' if used else ', beside the other members'}; the cluster has {nodes_text or 'no nodes'}"
            f"{free}. Change num_gpus, num_cpus or resources of its MemberConfig, or add nodes",
        )


def _listed(amounts: Mapping[str, float]) -> str:
    """Amounts of resources, without Ray's own (memory and labels of nodes)."""
    shown = {
        name: amount
        for name, amount in sorted(amounts.items())
        if name not in ("memory", "object_store_memory") and not name.startswith(("node:", "bundle_", "accelerator_"))
    }
    return ", ".join(f"{name} {amount:g}" for name, amount in shown.items() if "_group_" not in name)
