"""Members in actors of Ray answer as members in this process do, token for token."""

from __future__ import annotations

import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, member_ids, shared_ensemble
from pooled import recorded_loads

from gac_core import ConfigError, Ensemble, GaCError, Grammar, MemberConfig, MemberError, ModelLoadError
from gac_core.combination import GATES
from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM

pytestmark = pytest.mark.ray

PAIR = EMBEDDED[:2]
PROMPTS = ["In which town", QUESTION, LONG_PROMPT, "one two three one two three one two", "The bridge stands in"]
SCHEMA = {"type": "object", "properties": {"town": {"type": "string", "maxLength": 12}}, "required": ["town"]}


@pytest.fixture(scope="module")
def remote(ray_nodes):
    with ray_nodes.load(PAIR) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def local():
    with shared_ensemble(PAIR) as loaded:
        yield loaded


def same(remote: Ensemble, local: Ensemble, prompt, **asked) -> None:
    """Both answer alike, with the same log-probabilities up to rounding."""
    wanted, found = local.generate(prompt, **asked), remote.generate(prompt, **asked)
    assert (found.text, found.tokens, found.finish_reason) == (wanted.text, wanted.tokens, wanted.finish_reason)
    if wanted.logprobs is not None:
        for one, other in zip(found.logprobs, wanted.logprobs, strict=True):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    for one, other in zip(found.token_stats or (), wanted.token_stats or (), strict=True):
        assert [(each.member, each.token) for each in one.members] == [(m.member, m.token) for m in other.members]
        for own, same_member in zip(one.members, other.members, strict=True):
            assert (own.probability, own.selected) == pytest.approx(
                (same_member.probability, same_member.selected), abs=1e-5
            )


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"drafts": False},
        {"temperature": 1.0, "seed": 7},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "seed": 8},
        {"threshold": 0.5},
        {"threshold": 0.5, "gate": "birch", "gate_rule": "margin"},
        {"combine": "safe", "gate": "birch"},
        {"combine": "power:-0.5"},
        {"threshold": 1.0, "gate_rule": "consensus", "weights": {"birch": 5.0}},
        {"weights": {"ash": 1.0, "birch": 3.0}},
        {"weights": {"ash": 1.0, "birch": 0.0}},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {" of": 3.0, " the": -100.0}},
        {"logprobs": 3},
        {"stop": ["e"]},
        {"token_stats": True, "threshold": 0.7},
    ],
    ids=str,
)
def test_answers_are_those_of_members_in_this_process(remote, local, asked):
    for prompt in PROMPTS:
        same(remote, local, prompt, max_tokens=16, **asked)


GATED = {"threshold": 0.5, "frequency_penalty": 1.0, "logit_bias": {" of": 100.0}}


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "seed": 7}, GATED], ids=str)
@pytest.mark.parametrize(
    "grammar",
    [Grammar.regex("[a-z]{3,8}, [0-9]{1,4}"), Grammar.json_schema(SCHEMA, closes=True)],
    ids=["regex", "json"],
)
def test_answers_with_a_grammar_are_those_of_members_in_this_process(remote, local, asked, grammar):
    for prompt in PROMPTS[:2]:
        same(remote, local, prompt, max_tokens=24, grammar=grammar, **asked)


class Unreadable:
    """A gate rule that no other process can read."""

    def __call__(self, probs, share):
        return probs.amax(-1)

    def __reduce__(self):
        return int, ("no number",)


def test_gate_rules_of_users_run_beside_the_model_and_fail_their_own_requests_alone(local, remote, monkeypatch):
    lock = threading.Lock()
    monkeypatch.setitem(GATES, "half", lambda probs, share: probs.amax(-1) / 2)
    monkeypatch.setitem(GATES, "locked", lambda probs, share: lock and probs.amax(-1))
    monkeypatch.setitem(GATES, "unreadable", Unreadable())
    asked = {"max_tokens": 8, "threshold": 0.4}
    with ThreadPoolExecutor() as pool:
        futures = {rule: pool.submit(remote.generate, QUESTION, gate_rule=rule, **asked) for rule in GATES}
        for rule, reason in (("locked", "sending its gate rule"), ("unreadable", "measuring how sure its gate is")):
            with pytest.raises(GaCError, match=reason) as caught:
                futures[rule].result()
            assert not isinstance(caught.value, MemberError)
        for rule in ("confidence", "margin", "half"):
            assert futures[rule].result().tokens == local.generate(QUESTION, gate_rule=rule, **asked).tokens


def test_tables_that_an_actor_could_not_store_are_sent_again(remote, local, monkeypatch):
    from gac_core.executor.ray import process

    encode = process.encode
    for member in remote._members:
        member.supervisor.process.resend_tables()
    # The actor cannot read the first message.
    monkeypatch.setattr(process, "encode", lambda message: monkeypatch.undo() or encode(message)[:-1])
    with pytest.raises(MemberError, match="truncated"):
        remote.generate(QUESTION, max_tokens=2)
    same(remote, local, QUESTION, max_tokens=8)


def test_requests_at_once_are_answered_as_one_by_one(remote, local):
    prompts = [f"{prompt} {number}" for number in range(2) for prompt in PROMPTS[:4]]
    wanted = [local.generate(prompt, max_tokens=12).text for prompt in prompts]
    assert [output.text for output in remote.generate_batch(prompts, max_tokens=12)] == wanted


def test_prefixes_of_finished_requests_are_reused(remote, local):
    prompt = "A text that no other test asks for. " * 4
    same(remote, local, prompt, max_tokens=4)
    output = remote.generate(prompt + "More.", max_tokens=4)
    assert output.stats.members["birch"].reused_tokens > 20
    assert output.text == local.generate(prompt + "More.", max_tokens=4).text


def test_this_process_loads_no_model_and_members_are_on_different_nodes(ray_nodes, remote, monkeypatch):
    loads = recorded_loads(monkeypatch)
    with ray_nodes.load(PAIR, threshold=0.5) as view:
        assert [member.member_id for member in view._members] == [member.member_id for member in remote._members]
        assert len({member.facts.node_id for member in view._members}) == 2
        assert view.generate("In which town", max_tokens=3).text
    assert not loads
    assert remote.generate("In which town", max_tokens=3).text


def test_wrappers_and_files_reach_the_same_members(ray_nodes, remote, tmp_path):
    members = [
        {"model": member.model, "dtype": "float32", "resources": member.resources} for member in remote.config.members
    ]
    wrapped = ChatGaC(models=members, executor="ray", ray_address=ray_nodes.address)
    path = tmp_path / "ensemble.yaml"
    path.write_text(remote.config.to_yaml(), encoding="utf-8")
    with wrapped._ensemble as one, Ensemble.from_config(path) as other, GaCLLM(config=str(path)).ensemble as third:
        for ensemble in (one, other, third):
            assert member_ids(ensemble) == member_ids(remote)


def test_chat_templates_are_those_of_this_process(ray_nodes):
    member = MemberConfig(PAIR[0], dtype="float32", chat_template="plain", resources={"left": 1})
    with ray_nodes.load([member]) as remote, Ensemble.load([replace(member, resources=None)]) as local:
        same(remote, local, QUESTION, max_tokens=12)


def test_the_same_cluster_has_several_addresses(ray_nodes, remote):
    port = ray_nodes.address.rpartition(":")[2]
    for address in ("auto", f"127.0.0.1:{port}", f"localhost:{port}"):
        with Ensemble.from_config(replace(remote.config, ray_address=address)) as view:
            assert member_ids(view) == member_ids(remote)


def test_addresses_that_cannot_be_used_are_named(ray_nodes, remote):
    with pytest.raises(
        ConfigError, match=r"ray_address='10.0.0.9:1234', but this process is connected with the Ray at"
    ):
        Ensemble.load(PAIR, executor="ray", ray_address="10.0.0.9:1234")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        (
            "127.0.0.1:1",
            r"Ray cannot be reached \(ray_address='127.0.0.1:1'\): ConnectionRefusedError.*ray start --head",
        ),
        ("ray://127.0.0.1:10001", r"one of Ray's client server.*give the address of its head"),
    ],
)
def test_addresses_without_a_cluster_are_named(address, reason):
    from gac_core.executor.ray.cluster import _initialise

    with pytest.raises(ConfigError, match=reason):
        _initialise(address)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (MemberConfig("./missing"), "there is no folder './missing'"),
        (MemberConfig(PAIR[0], tokenizer="./missing"), "there is no folder './missing'"),
        (MemberConfig(PAIR[0], gguf_file="missing.gguf"), "has no file 'missing.gguf'"),
    ],
)
def test_folders_are_checked_before_ray_is_used(member, reason):
    with pytest.raises(ModelLoadError, match=reason):
        Ensemble.load([PAIR[1], member], executor="ray", ray_address="127.0.0.1:1")


def test_an_address_that_answers_but_refuses_names_the_token_first(monkeypatch):
    from gac_core.executor.ray import cluster

    def refuse(**options):
        raise ConnectionError("Failed to connect to Ray cluster")

    # Ray itself tries for 20 s.
    monkeypatch.setattr(cluster.ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"^the token.*RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.*Failed to connect"):
            cluster._initialise(address)


@pytest.mark.parametrize(("mode", "warned"), [("token", False), ("disabled", True), (None, True)])
def test_a_ray_that_is_started_without_a_token_is_warned_of(monkeypatch, caplog, mode, warned):
    from gac_core.executor.ray import cluster

    started = []
    monkeypatch.setattr(cluster.ray, "init", lambda **options: started.append(options["address"]))
    monkeypatch.setattr(cluster, "_owner", os.getpid())
    monkeypatch.delenv("RAY_AUTH_MODE")
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    assert cluster._initialise("local")
    assert started == ["local"]
    assert ("requires no token" in caplog.text) == warned


def test_a_forked_process_cannot_use_the_ray_of_its_parent(ray_nodes, remote):
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            ray_nodes.load(PAIR[:1])
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    assert os.waitpid(pid, 0)[1] == 0
    with os.fdopen(read) as file:
        assert file.read().startswith("EngineClosedError: Ray was initialised before this process was forked")
    assert remote.generate("In which town", max_tokens=3).text


@pytest.mark.parametrize(
    ("settings", "has_gpus", "amounts", "device"),
    [
        ({}, False, {}, "cpu"),
        ({}, True, {"GPU": 1}, None),
        ({"device": "cpu"}, True, {}, "cpu"),
        ({"num_gpus": 0}, True, {}, "cpu"),
        ({"num_gpus": 0.5, "num_cpus": 2}, True, {"GPU": 0.5, "CPU": 2}, None),
        ({"num_gpus": 2, "device_map": "auto"}, True, {"GPU": 2}, None),
        ({"resources": {"b": 2, "a": 1}}, False, {"a": 1, "b": 2}, "cpu"),
    ],
)
def test_what_is_reserved_decides_where_a_member_is_loaded(settings, has_gpus, amounts, device):
    from gac_core.executor.ray.placement import Reservation

    member = MemberConfig("a", **settings)
    reservation = Reservation.of(member, has_gpus)
    assert reservation.amounts == amounts
    placed = reservation.placed(member)
    assert (placed.device, placed.device_map) == (device, member.device_map)
    assert not placed.reserves


def test_a_member_uses_its_share_of_the_cores():
    from gac_core.executor.ray.actor import Threads

    assert [Threads(None, members).on(8) for members in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert Threads(6, 2).on(8) == 6


def test_another_tokenizer_than_that_of_the_node_is_refused(remote, tokenizer):
    from gac_core.executor.ray.remote_member import RemoteMember

    supervisor = remote._members[1].supervisor
    with pytest.raises(
        ModelLoadError, match=r"its tokenizer on node .* differs from the one here .* copy the same files"
    ):
        RemoteMember("birch", "birch-0", supervisor, tokenizer, deterministic=False)


def test_a_member_that_takes_too_long_to_load_is_named(ray_nodes, monkeypatch):
    monkeypatch.setattr("gac_core.executor.ray.supervisor.START_SECONDS", 0.1)
    with pytest.raises(ModelLoadError, match="'ash': its actor was not ready after 0 s"):
        ray_nodes.load(PAIR[:1], prefill_tokens=64)


def test_a_node_with_another_version_of_this_library_is_named(ray_nodes, monkeypatch):
    def decode(parts):
        raise AttributeError("no class MemberFacts")

    monkeypatch.setattr("gac_core.executor.ray.process.decode", decode)
    with pytest.raises(ModelLoadError, match=r"'ash': its actor's report .*no class MemberFacts.* same version"):
        ray_nodes.load(PAIR[:1], prefill_tokens=65)
