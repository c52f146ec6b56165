"""A cluster of two Ray nodes on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

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


class FilesTogether(LoadFileScheduling):
    """Keeps the tests of a file in one process of xdist, and in one other all that use actors, with their cluster."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        return "ray" if "_ray" in file or "actors" in test else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FilesTogether:
    """Tells xdist how to divide the tests."""
    return FilesTogether(config, log)


def skip_without_ray(items: list[pytest.Item]) -> None:
    """Skips the tests that need Ray where it is not installed."""
    if importlib.util.find_spec("ray") is None:
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(pytest.mark.skip(reason="Ray is not installed (pip install 'gac-ensemble[ray]')"))


@contextmanager
def started_nodes() -> Iterator[Nodes]:
    """Starts two nodes and ends them."""
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 2, "object_store_memory": 2**27, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "resources": {"left": 8}})
    try:
        cluster.add_node(num_cpus=2, object_store_memory=2**27, resources={"right": 8})
        yield Nodes(cluster, cluster.address)
    finally:
        cluster.shutdown()
