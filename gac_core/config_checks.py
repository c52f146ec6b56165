"""Checks of `EnsembleConfig` that concern several of its fields."""

from __future__ import annotations

from collections.abc import Sequence

from gac_core.checks import check_flag, check_list, check_option, check_text
from gac_core.errors import ConfigError, quote
from gac_core.member_config import MemberConfig

FAILURE_POLICIES = ("fail", "drop")


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


def checked_drafts(value: object, deterministic: bool, known: Sequence[str]) -> tuple[str, ...]:
    """Returns the value of ``drafts``; for None all kinds, or none with ``deterministic``.

    Raises:
        ConfigError: It names an unknown kind, or any with ``deterministic``.
    """
    if value is None:
        return () if deterministic else tuple(known)
    given = check_list(ConfigError, "drafts", value, f"some of {', '.join(map(quote, known))}")
    drafts = tuple(check_option(ConfigError, "drafts", draft, known) for draft in given)
    if deterministic and drafts:
        raise ConfigError(f"deterministic=True computes no drafts, not {', '.join(drafts)}; give drafts=()")
    return drafts


def check_deterministic(members: Sequence[MemberConfig]) -> None:
    """Raises a `ConfigError` for a member that cannot compute each request by itself."""
    compiled = [member.called for member in members if member.compile]
    if compiled:
        raise ConfigError(
            f"deterministic=True runs one request per forward, but member {quote(compiled[0])} has compile=True, "
            "which batches; set it to False"
        )


def checked_policy(policy: object, min_members: int, gate_must_live: object) -> str:
    """Returns the value of ``on_member_failure``.

    Raises:
        ConfigError: There is no such policy, or the other settings have no effect with it.
    """
    checked = check_option(ConfigError, "on_member_failure", policy, FAILURE_POLICIES)
    check_flag(ConfigError, "gate_must_live", gate_must_live)
    if checked == "fail" and (min_members > 1 or gate_must_live):
        field, value = ("min_members", min_members) if min_members > 1 else ("gate_must_live", gate_must_live)
        raise ConfigError(
            f"{field}={quote(value)} has an effect with on_member_failure='drop' alone, not 'fail'; leave it out or "
            "set on_member_failure"
        )
    return checked
