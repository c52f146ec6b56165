"""Answers a question on a Ray cluster of two nodes, both on this machine, with a member on each.

Run in the repository's root: ``python examples/cluster/two_nodes.py``. Needs the extra ``ray``. The cluster is started
and stopped here; on a real one, ``ray_address`` is ``"auto"`` and Ray finds a place for each member by itself.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# All processes of a cluster share one token; it must be known before Ray is imported.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from ray.cluster_utils import Cluster

from gac_core import Ensemble, EnsembleConfig, MemberConfig

MODELS = Path(__file__).parent.parent / "models"
MESSAGES = [
    {"role": "system", "content": "Answer the question from the passages. If the passages do not tell, say so."},
    {
        "role": "user",
        "content": "Passages:\n\nThe Velgin Bridge crosses the river in Borfen. It was built in 1874.\n\nQuestion: In "
        "which town is the Velgin Bridge?",
    },
]


@contextmanager
def two_nodes() -> Iterator[str]:
    """Starts a cluster of two nodes with one core each, and yields its address."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"first": 1}})
    try:
        cluster.add_node(num_cpus=1, resources={"second": 1})
        yield cluster.address
    finally:
        cluster.shutdown()


def main() -> None:
    """Prints the answer, and where each member runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-tokens", type=int, default=24)
    args = parser.parse_args()
    members = (
        MemberConfig(str(MODELS / "ash"), dtype="float32", num_cpus=1, resources={"first": 1}),
        MemberConfig(str(MODELS / "cedar"), dtype="float32", num_cpus=1, resources={"second": 1}),
    )
    with two_nodes() as address:
        config = EnsembleConfig(members, executor="ray", ray_address=address, on_member_failure="drop")
        with Ensemble.from_config(config) as ensemble:
            print(ensemble.generate(MESSAGES, max_tokens=args.max_tokens).text)
            for member in ensemble.health().members:
                print(f"{member.name}: {member.state} on {member.where}")


if __name__ == "__main__":
    main()
