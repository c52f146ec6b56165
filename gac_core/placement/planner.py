"""`plan`: puts members on devices by their sizes. Values in, values out; the same input gives the same plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from gac_core.errors import ConfigError, listed, quote
from gac_core.placement.sizes import format_bytes
from gac_core.placement.values import Device, DeviceUse, MemberNeed, Placement, Plan, Share, uses

RESERVE = 0.05
"""Fraction of a device's memory that a plan leaves free: for fragmentation and the workspaces of kernels."""

_MAX_STEPS = 5_000
"""Placements that are tried at most, before members are said not to fit."""


class PlacementError(ConfigError):
    """A member does not fit on the devices.

    Args:
        need: The member.
        devices: The devices, and what other members take of them.

    Attributes:
        member: Its name.
        need: The bytes that it needs.
        free: The bytes that are free for it on each device, by name.
    """

    def __init__(self, need: MemberNeed, devices: Sequence[DeviceUse]) -> None:
        self.member = need.name
        self.need = need.total
        self.free: Mapping[str, int] = {use.device.name: max(0, use.left) for use in devices}
        free = listed(f"{format_bytes(size)} on {name}" for name, size in self.free.items())
        others = list(dict.fromkeys(name for use in devices for name in use.members))
        reserved = sum(use.reserve for use in devices)
        beside = [f"beside {listed(others)}"] if others else []
        beside += [f"with {format_bytes(reserved)} in reserve"] if reserved else []
        more = f", {' and '.join(beside)}" if beside else ""
        parts = {"weights": need.weights, "KV cache": need.kv_cache, "activations": need.activations}
        sizes = ", ".join(f"{what} {format_bytes(size)}" for what, size in parts.items() if size)
        if need.blocks and need.activations and len(devices) > 1:
            sizes += " on each device that it is divided over"
        remedies = [*need.remedies, "a smaller cache_gib or document_cache_gib"] if need.kv_cache else [*need.remedies]
        super().__init__(
            f"member {quote(need.name)} does not fit: it needs {format_bytes(need.total)} ({sizes}); "
            f"free{more}: {free}; use {', '.join([*remedies, 'more or larger devices'])} or a smaller model"
        )


class _Search:
    """Finds devices for members one after another, and takes back what leaves no room for a later one.

    Args:
        devices: The devices.
        reserve: Fraction of each that stays free.
        fixed: Placements that are decided.
    """

    def __init__(self, devices: Sequence[Device], reserve: float, fixed: Sequence[Placement]) -> None:
        self._devices = devices
        self._reserve = reserve
        self._fixed = tuple(fixed)
        self._steps = 0
        self.error: PlacementError | None = None

    def place(self, needs: Sequence[MemberNeed], placed: tuple[Placement, ...] = ()) -> tuple[Placement, ...] | None:
        """Returns the placements of all members, or None; `error` is that of the first one for which no room was."""
        if not needs:
            return placed
        self._steps += 1
        need, *others = needs
        now = uses([*self._fixed, *placed], self._devices, self._reserve)
        options = list(_options(need, now))
        if not options and self.error is None:
            self.error = PlacementError(need, now)
        for shares in options:
            found = self.place(others, (*placed, Placement(need, shares)))
            if found is not None or self._steps > _MAX_STEPS:
                return found
        return None


def plan(needs: Sequence[MemberNeed], devices: Sequence[Device], reserve: float = RESERVE) -> Plan:
    """Places members on devices.

    Members whose own settings name devices come first, on these. Then the larger ones before the smaller ones: each on
    the device with the fewest members, of these the one with most room. A member that fits on no single device is
    divided over as few as possible. If that leaves no room for a later member, other choices are tried.

    Args:
        needs: The members; their names differ.
        devices: The devices, one or more; their names differ.
        reserve: Fraction of each device's memory that stays free. Default `RESERVE`.

    Raises:
        PlacementError: A member does not fit. Of one with devices of its own, the weights must fit into what is free.
    """
    if not devices:
        raise ConfigError("there are no devices to place members on; name one, such as 'cpu' or 'cuda:0'")
    names = [device.name for device in devices]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"devices names {quote(twice)} twice; name each device once")
    fixed = [Placement(need, _fixed_shares(need)) for need in needs if need.fixed]
    _check_fixed(fixed, devices)
    search = _Search(devices, reserve, fixed)
    # By name where sizes are equal, so that the order of the members decides nothing.
    free = sorted((need for need in needs if not need.fixed), key=lambda need: (-need.total, need.name))
    placed = search.place(free)
    if placed is None:
        assert search.error is not None
        raise search.error
    by_name = {placement.need.name: placement for placement in (*fixed, *placed)}
    placements = tuple(by_name[need.name] for need in needs)
    return Plan(placements, uses(placements, devices, reserve))


def _fixed_shares(need: MemberNeed) -> tuple[Share, ...]:
    return tuple(
        Share(device, round(need.weights * part), round(need.kv_cache * part), need.activations)
        for device, part in need.fixed
    )


def _check_fixed(fixed: Sequence[Placement], devices: Sequence[Device]) -> None:
    """Raises if the weights of members with devices of their own exceed what is free there."""
    for index, placement in enumerate(fixed):
        for device in devices:
            taken = sum(
                share.weights for each in fixed[: index + 1] for share in each.shares if share.device == device.name
            )
            if device.name in placement.devices and taken > device.free:
                own = [use for use in uses(fixed[:index], devices, 0.0) if use.device.name in placement.devices]
                raise PlacementError(placement.need, own)


def _options(need: MemberNeed, devices: Sequence[DeviceUse]) -> Iterator[tuple[Share, ...]]:
    """The ways to place a member, best first: on one device; if it fits on none, divided."""
    order = sorted(range(len(devices)), key=lambda index: (len(devices[index].members), -devices[index].left, index))
    fits = [devices[index].device.name for index in order if need.total <= devices[index].left]
    for name in fits:
        yield (Share(name, need.weights, need.kv_cache, need.activations),)
    if not fits and need.blocks:
        yield from _divided(need, devices)


def _divided(need: MemberNeed, devices: Sequence[DeviceUse]) -> Iterator[tuple[Share, ...]]:
    """The member divided over as few devices as possible, in their order, those with most room."""
    by_room = sorted(range(len(devices)), key=lambda index: (-devices[index].left, index))
    for count in range(2, len(devices) + 1):
        shares = _filled(need, [devices[index] for index in sorted(by_room[:count])])
        if shares is not None:
            yield shares
            return


def _filled(need: MemberNeed, devices: Sequence[DeviceUse]) -> tuple[Share, ...] | None:
    """The member's blocks on devices that are filled one after another; None if they do not suffice."""
    blocks, shares = list(need.blocks), []
    for use in devices:
        room = use.left - need.activations
        taken = 0
        while taken < len(blocks) and blocks[taken].total <= room:
            room -= blocks[taken].total
            taken += 1
        here, blocks = blocks[:taken], blocks[taken:]
        if here:
            shares.append(
                Share(
                    use.device.name,
                    sum(block.weights for block in here),
                    sum(block.kv_cache for block in here),
                    need.activations,
                    tuple(module for block in here for module in block.modules),
                )
            )
    return None if blocks else tuple(shares)
