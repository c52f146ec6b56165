"""A cluster of two Ray nodes on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gac_core import Ensemble, MemberConfig


@dataclass
class Nodes:
    """Two nodes, of which one alone has the resource ``left`` and the other one ``right``.

    Attributes:
        cluster: The cluster, of `ray.cluster_utils`.
        address: Its address.
    """

    cluster: Any
    address: str

    def load(self, models, **settings) -> Ensemble:
        """An ensemble on them, in fp32; its members are on the left and the right node in turn."""
        members = [
            model
            if isinstance(model, MemberConfig)
            else MemberConfig(model, dtype="float32", resources={("left", "right")[place % 2]: 1})
            for place, model in enumerate(models)
        ]
        return Ensemble.load(members, executor="ray", ray_address=self.address, **settings)


@contextmanager
def started_nodes() -> Iterator[Nodes]:
    """Starts two nodes with token authentication and ends them."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "resources": {"left": 8}})
    try:
        cluster.add_node(num_cpus=2, object_store_memory=2**27, resources={"right": 8})
        yield Nodes(cluster, cluster.address)
    finally:
        cluster.shutdown()
