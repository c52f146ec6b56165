"""Checks of `EnsembleConfig` that concern several of its fields."""

from __future__ import annotations

from collections.abc import Sequence

from gac_core.checks import check_list, check_text
from gac_core.errors import ConfigError, quote
from gac_core.member_config import MemberConfig


def check_placement(executor: str, ray_address: str | None, devices: object, members: Sequence[MemberConfig]) -> None:
    """Raises a `ConfigError` for a setting of another executor than that of the ensemble."""
    if executor == "ray":
        if devices is not None:
            raise ConfigError(
                "devices names devices of this process, but with executor='ray' each member runs on a node of the "
                "cluster; leave it out, and give members num_gpus"
            )
        return
    remedy = f"has an effect with executor='ray' alone, not {quote(executor)}; leave it out or set executor"
    if ray_address is not None:
        raise ConfigError(f"ray_address {remedy}")
    for member in members:
        if member.reserves:
            raise ConfigError(f"the {member.reserves[0]} of member {quote(member.called)} {remedy}")


def checked_devices(value: object) -> tuple[str, ...]:
    """Returns the value of ``devices``.

    Raises:
        ConfigError: It does not name devices, each once.
    """
    remedy = "give for example ['cuda:0', 'cuda:1']"
    given = check_list(ConfigError, "devices", value, "devices", remedy)
    devices = tuple(check_text(ConfigError, "each of devices", device, remedy) for device in given)
    if not devices or len(set(devices)) < len(devices):
        raise ConfigError(f"devices must name one device or more, each once, not {quote(list(devices))}; {remedy}")
    return devices
