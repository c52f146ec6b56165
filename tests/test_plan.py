"""The planner: no plan exceeds what is free, every member is placed or an error says what it lacks."""

from __future__ import annotations

import json
import re
from itertools import permutations

import pytest
from conftest import EMBEDDED
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gac_core import ConfigError, PlacementError
from gac_core.cli import app
from gac_core.placement.planner import plan
from gac_core.placement.sizes import format_bytes, parse_bytes
from gac_core.placement.values import Block, Device, MemberNeed

GIB = 2**30


def gpus(*sizes: int) -> list[Device]:
    return [Device(f"cuda:{index}", size * GIB, size * GIB) for index, size in enumerate(sizes)]


def need(name: str, gib: float, layers: int = 0, **fields) -> MemberNeed:
    """A member of equal layers, which also have its KV cache; of no layers, it cannot be divided."""
    weights, kv_cache = int(gib * GIB), fields.pop("kv_cache", 0)
    blocks = tuple(Block((f"layers.{index}",), weights // layers, kv_cache // layers) for index in range(layers))
    return MemberNeed(name, weights, kv_cache, blocks=blocks, **fields)


def places(result):
    return {placement.need.name: placement.devices for placement in result.placements}


def test_each_member_has_a_gpu_where_there_are_enough():
    result = plan([need("a", 8), need("b", 30), need("c", 16)], gpus(40, 40, 40), reserve=0)
    assert places(result) == {"a": ("cuda:2",), "b": ("cuda:0",), "c": ("cuda:1",)}
    assert [use.members for use in result.devices] == [("b",), ("c",), ("a",)]
    assert [use.left for use in result.devices] == [10 * GIB, 24 * GIB, 32 * GIB]


def test_members_share_a_gpu_where_there_are_fewer():
    result = plan([need("a", 8), need("b", 30), need("c", 16)], gpus(40, 40), reserve=0)
    assert places(result) == {"a": ("cuda:1",), "b": ("cuda:0",), "c": ("cuda:1",)}


def test_the_larger_member_has_the_larger_gpu():
    assert places(plan([need("small", 8), need("large", 16)], gpus(10, 24), reserve=0)) == {
        "small": ("cuda:0",),
        "large": ("cuda:1",),
    }


def test_a_choice_that_leaves_no_room_is_taken_back():
    """One member per device first would put 5 and 5 apart, and leave no room for the 4s."""
    needs = [need("a", 5), need("b", 5), need("c", 4), need("d", 4), need("e", 2)]
    assert {use.left for use in plan(needs, gpus(10, 10), reserve=0).devices} == {0}


def test_a_large_member_is_divided_in_the_order_of_its_layers():
    result = plan([need("large", 60, layers=6, kv_cache=6 * GIB, activations=GIB)], gpus(40, 40), reserve=0)
    (placement,) = result.placements
    assert placement.device_map == {f"layers.{index}": f"cuda:{index // 3}" for index in range(6)}
    assert [(share.weights, share.kv_cache, share.activations) for share in placement.shares] == [
        (30 * GIB, 3 * GIB, GIB)
    ] * 2


def test_a_divided_member_takes_as_few_devices_as_possible():
    result = plan([need("large", 60, layers=60), need("small", 10)], gpus(20, 40, 20, 40), reserve=0)
    assert places(result) == {"large": ("cuda:1", "cuda:3"), "small": ("cuda:0",)}


def test_a_reserve_stays_free():
    assert places(plan([need("a", 38)], gpus(40))) == {"a": ("cuda:0",)}
    with pytest.raises(PlacementError, match=r"with 2\.0 GiB in reserve: 38\.0 GiB on cuda:0"):
        plan([need("a", 38.1)], gpus(40))


def test_devices_of_a_members_own_are_taken_first():
    fixed = need("a", 10, kv_cache=4 * GIB, fixed=(("cuda:0", 1.0),))
    result = plan([need("b", 16), fixed], gpus(24, 20), reserve=0)
    assert places(result) == {"b": ("cuda:1",), "a": ("cuda:0",)}
    # Its KV cache need not fit, since the choice is the user's.
    assert plan([fixed], gpus(12), reserve=0).devices[0].left == -2 * GIB
    with pytest.raises(PlacementError, match=r"'a' does not fit: .*weights 10\.0 GiB.*free: 8\.0 GiB on cuda:0"):
        plan([fixed], gpus(8, 80))


def test_the_error_names_the_member_its_need_and_what_is_free():
    large = need("oak", 60, kv_cache=GIB, activations=GIB, remedies=("quantization='4bit'",))
    with pytest.raises(PlacementError) as error:
        plan([large, need("fir", 70)], gpus(80, 40), reserve=0)
    assert str(error.value) == (
        "member 'oak' does not fit: it needs 62.0 GiB (weights 60.0 GiB, KV cache 1.0 GiB, activations 1.0 GiB); free, "
        "beside fir: 10.0 GiB on cuda:0, 40.0 GiB on cuda:1; use quantization='4bit', a smaller cache_gib or "
        "document_cache_gib, more or larger devices or a smaller model"
    )
    assert isinstance(error.value, ConfigError)
    assert (error.value.member, error.value.need) == ("oak", 62 * GIB)
    assert error.value.free == {"cuda:0": 10 * GIB, "cuda:1": 40 * GIB}
    # 4 GiB are free, but each device also needs the activations.
    with pytest.raises(
        PlacementError, match=r"activations 1\.0 GiB on each device that it is divided over\); free: 2\.0"
    ):
        plan([need("elm", 2.5, layers=5, activations=GIB)], gpus(2, 2), reserve=0)
    with pytest.raises(ConfigError, match="no devices"):
        plan([large], [])


NEEDS = st.lists(
    st.builds(
        lambda weights, kv_cache, activations, layers: (weights * layers, kv_cache * layers, activations, layers),
        *(st.integers(0, 12), st.integers(0, 3), st.integers(0, 4), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=5,
)
DEVICES = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def made(values) -> list[MemberNeed]:
    needs = []
    for index, (weights, kv_cache, activations, layers) in enumerate(values):
        blocks = tuple(Block((f"layers.{n}",), weights // layers, kv_cache // layers) for n in range(layers))
        needs.append(MemberNeed(f"m{index}", weights, kv_cache, activations, blocks if layers > 1 else ()))
    return needs


@given(NEEDS, DEVICES, st.sampled_from([0.0, 0.05, 0.2]))
def test_no_plan_exceeds_what_is_free(values, sizes, reserve):
    needs, devices = made(values), [Device(f"cuda:{index}", size, size) for index, size in enumerate(sizes)]
    try:
        result = plan(needs, devices, reserve)
    except PlacementError as caught:
        error = caught
    else:
        error = None
    if error is not None:
        assert error.member in {need.name for need in needs}
        assert set(error.free) == {device.name for device in devices}
        return
    assert [placement.need for placement in result.placements] == needs
    for use in result.devices:
        shares = [s for p in result.placements for s in p.shares if s.device == use.device.name]
        assert sum(share.total for share in shares) <= use.device.free - int(reserve * use.device.total)
    for placement in result.placements:
        assert sum(share.weights for share in placement.shares) == placement.need.weights
        assert sum(share.kv_cache for share in placement.shares) == placement.need.kv_cache
        if placement.device_map is not None:
            assert list(placement.device_map) == [m for b in placement.need.blocks for m in b.modules]
    assert plan(needs, devices, reserve) == result


@given(NEEDS, DEVICES)
def test_the_order_of_members_changes_no_place(values, sizes):
    needs, devices = made(values[:4]), [Device(f"cuda:{index}", size, size) for index, size in enumerate(sizes)]
    found = set()
    for order in permutations(needs):
        try:
            result = plan(order, devices)
            found.add(tuple(sorted((p.need.name, p.shares) for p in result.placements)))
        except PlacementError as error:
            found.add(str(error))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GiB", 80 * GIB), ("24 GB", 24 * 10**9), ("1.5tib", 1536 * GIB), ("512MiB", 2**29), ("1000 B", 1000)],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "24", "GiB", "-1GiB", "1e3", "80 gigs", "nan", "9" * 13, "1..5GB", "80GiB 1"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ConfigError, match="is not a size; give for example 80GiB"):
        parse_bytes(text)


# ---- the command


def run(*arguments: str):
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_the_command_plans_for_devices_that_are_not_here(monkeypatch):
    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    result = run(*EMBEDDED[:2], "--devices", "cuda:0=4GiB, cuda:1=4GiB")
    assert result.exit_code == 0, result.output
    for text in ("ash", "birch", "1.9 MiB", "1.5 GiB", "cuda:0", "cuda:1", "4.0 GiB", "204.8 MiB"):
        assert text in result.output
    result = run(
        *EMBEDDED[:2], "--devices", "cuda:0=4GiB", "--json", "--cache-gib", "0.25", "--document-cache-gib", "0.125"
    )
    values = json.loads(result.output)
    assert [(member["name"], list(member["devices"])) for member in values["members"]] == [
        ("ash", ["cuda:0"]),
        ("birch", ["cuda:0"]),
    ]
    assert {member["kv_cache"] for member in values["members"]} == {GIB * 3 // 8}
    (device,) = values["devices"]
    assert device["used"] == sum(sum(member["devices"].values()) for member in values["members"])
    assert device["left"] == device["free"] - device["used"] - device["reserve"]


def test_the_command_counts_dtype_quantization_context_and_batch():
    free = ("--cache-gib", "0", "--document-cache-gib", "0")

    def member(*options: str):
        result = run(EMBEDDED[0], "--devices", "cuda:0=99GiB", "--json", *free, *options)
        return json.loads(result.output)["members"][0]

    plain = member()
    assert member("--dtype", "float32")["weights"] == pytest.approx(2 * plain["weights"], rel=1e-3)
    assert member("--quantization", "8bit")["weights"] < plain["weights"]
    assert member("--quantization", "4bit")["weights"] < member("--quantization", "8bit")["weights"]
    assert plain["kv_cache"] == 0
    long = member("--context", "1024")["kv_cache"]
    # Layers, keys and values, heads, head_dim, bytes of bfloat16.
    assert long == 1024 * 5 * 2 * 4 * 32 * 2
    assert member("--context", "1024", "--batch", "8")["kv_cache"] == 8 * long
    assert member("--batch", "32")["activations"] > plain["activations"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--devices", "cuda:0=1GiB"], r"'ash' does not fit: it needs 1\.5 GiB"),
        (["--devices", "cuda:0=many"], "'many' is not a size"),
        (["--devices", "=1GiB"], "has no name of a device"),
        (["--devices", "cuda:77"], "devices names 'cuda:77', which cannot be used"),
        (["--devices", "cuda:0=1GiB,cuda:0=1GiB"], "devices names 'cuda:0' twice"),
        (["--dtype", "int3"], "dtype"),
        (["/no/such/folder"], "there is no folder '/no/such/folder'"),
    ],
)
def test_errors_of_the_command_are_short(options, reason):
    result = run(EMBEDDED[0], *options)
    assert result.exit_code == 2
    assert result.output.startswith("gac plan: ")
    assert "Traceback" not in result.output
    assert re.search(reason, result.output)


def test_sizes_are_written():
    assert [format_bytes(size) for size in (0, 2**19, 3 * GIB)] == ["0.0 MiB", "0.5 MiB", "3.0 GiB"]
