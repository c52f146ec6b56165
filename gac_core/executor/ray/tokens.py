"""Token authentication of a Ray that is started here; this module does not import Ray."""

from __future__ import annotations

import os
import secrets
import sys


def starts_here(address: str | None) -> bool:
    """Returns whether Ray is started on this machine, rather than reached at an address.

    Args:
        address: As `EnsembleConfig.ray_address`.
    """
    return (address or os.environ.get("RAY_ADDRESS") or "local") == "local"


def require_token(address: str | None) -> None:
    """Lets a Ray that is started here answer only to this process and its actors, since it listens on all interfaces.

    Ray reads these variables when it is imported; where that has happened already, or ``RAY_AUTH_MODE`` is set, nothing
    changes.

    Args:
        address: As `EnsembleConfig.ray_address`.
    """
    if starts_here(address) and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
