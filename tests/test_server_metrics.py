"""The metrics of a server: what requests, engines and members add to them; dashboards and alerts use what exists."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import EMBEDDED, member_ids, shared_ensemble
from prometheus_client.parser import text_string_to_metric_families

from gac_core import Ensemble, token_counts
from gac_core.events import ForwardDone, MemberFailed, MemberRecovered, StepDone
from gac_core.server.catalog import Catalog
from gac_core.server.record import RequestRecord
from gac_core.server.telemetry.metrics import ServerMetrics

EXAMPLES = Path(__file__).parent.parent / "examples" / "server"
ROUTE = "/v1/completions"
PROMPT = "passages " * 30


@pytest.fixture(scope="module")
def duo():
    with shared_ensemble(EMBEDDED[:2], threshold=0.5, max_queue=7) as loaded:
        yield loaded


@pytest.fixture
def metrics(duo):
    made = ServerMetrics(Catalog({"duo": duo}))
    yield made
    made.close()


def record_of(*outputs, **fields) -> RequestRecord:
    values = dict.fromkeys(RequestRecord.__dataclass_fields__)
    values |= {"request_id": "r", "route": ROUTE, "model": "duo", "status": 200, "stream": False, "seconds": 0.5}
    values |= {"prompt_tokens": 0, "cached_tokens": 0, "documents": 0}
    for counts in map(token_counts, outputs[:1]):
        values |= {"prompt_tokens": counts.prompt, "cached_tokens": counts.cached}
    return RequestRecord(**{**values, "streamed_tokens": 0, "outputs": outputs, **fields})


def read(metrics: ServerMetrics, name: str, **labels) -> float | None:
    return metrics.registry.get_sample_value(name, {key: str(value) for key, value in labels.items()})


def test_counts_of_answered_requests(metrics, duo):
    output = duo.generate(PROMPT, max_tokens=12)
    other = duo.generate(PROMPT, max_tokens=8, temperature=1.0, seed=1)
    output.stats.drafted, output.stats.accepted, output.stats.forced = 9, 7, 2
    metrics.observe(record_of(output, other, first_token_seconds=0.02, streamed_tokens=20, stream=True))
    metrics.observe(record_of(output, model="duo/ash"))
    stats, tokens = [output.stats, other.stats], [len(output.tokens), len(other.tokens)]
    assert read(metrics, "gac_requests_total", route=ROUTE, model="duo", status=200) == 1
    assert read(metrics, "gac_prompt_tokens_total", model="duo") == output.usage.prompt_tokens
    assert read(metrics, "gac_completion_tokens_total", model="duo") == sum(tokens)
    assert read(metrics, "gac_completion_tokens_total", model="duo/ash") == tokens[0]
    assert read(metrics, "gac_steps_total", model="duo") == sum(each.steps for each in stats)
    assert read(metrics, "gac_steps_ensembled_total", model="duo") == sum(each.steps_ensembled for each in stats)
    assert read(metrics, "gac_drafted_tokens_total", model="duo") == sum(each.drafted for each in stats)
    assert read(metrics, "gac_accepted_tokens_total", model="duo") == sum(each.accepted for each in stats)
    assert read(metrics, "gac_drafted_tokens_total", model="duo") >= 9
    assert read(metrics, "gac_forced_tokens_total", model="duo") == 2
    assert read(metrics, "gac_time_to_first_token_seconds_sum", model="duo") == 0.02
    # Not streamed: measured by the engine.
    assert read(metrics, "gac_time_to_first_token_seconds_sum", model="duo/ash") == stats[0].first_token_seconds
    assert read(metrics, "gac_queue_seconds_count", model="duo") == 2
    assert read(metrics, "gac_request_seconds_sum", model="duo") == 0.5
    seconds = [(each.total_seconds - each.first_token_seconds) / (n - 1) for each, n in zip(stats, tokens, strict=True)]
    assert read(metrics, "gac_time_per_output_token_seconds_sum", model="duo") == pytest.approx(sum(seconds))


def test_reasoning_and_cached_prompts(metrics, duo):
    output = duo.generate(PROMPT + "again", max_tokens=2)
    again = duo.generate(PROMPT + "again", max_tokens=2)
    usage = replace(output.usage, reasoning_tokens=5)
    metrics.observe(record_of(replace(again, usage=usage)))
    assert read(metrics, "gac_prompt_cached_tokens_total", model="duo") == token_counts(again).cached > 0
    assert read(metrics, "gac_reasoning_tokens_total", model="duo") == 5


def test_refusals_and_disconnects(metrics):
    metrics.observe(record_of(status=429, error="queue_full"))
    metrics.observe(record_of(status=499, error="client_closed_request", streamed_tokens=3))
    for number in range(50):
        metrics.observe(record_of(model=f"made up {number}", status=404, error="model_not_found"))
    assert read(metrics, "gac_request_errors_total", code="queue_full") == 1
    assert read(metrics, "gac_client_disconnects_total", model="duo") == 1
    assert read(metrics, "gac_completion_tokens_total", model="duo") == 3
    assert read(metrics, "gac_requests_total", route=ROUTE, model="unknown", status=404) == 50
    assert read(metrics, "gac_request_seconds_count", model="duo") == 0
    assert "made up" not in metrics.render()[0].decode()


def test_events_of_engine_and_members(metrics, duo):
    events = []
    remove = duo.add_listener(events.append)
    duo.generate("Who", max_tokens=5, threshold=None)
    remove()
    forwards = [event for event in events if isinstance(event, ForwardDone)]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert read(metrics, "gac_engine_step_seconds_count") == len(steps) > 0
    assert read(metrics, "gac_engine_tokens_total") == sum(event.tokens for event in steps)
    for member in ("ash", "birch"):
        own = [event for event in forwards if event.member == member]
        labels = {"ensemble": "duo", "member": member}
        assert read(metrics, "gac_member_forward_seconds_sum", **labels) == sum(event.seconds for event in own) > 0
        assert read(metrics, "gac_member_tokens_total", **labels) == sum(event.tokens for event in own)


def test_failures_and_recoveries(metrics, duo):
    ash, birch = (member.member_id for member in duo.health().members)
    emit = duo._session.worker.monitor.emit
    emit(MemberFailed("x", birch, "it was lost", "MemberLostError"))
    emit(MemberFailed("x", birch, "it failed", "MemberError", "r1"))
    emit(MemberRecovered("x", birch, 1.0, restarted=True))
    emit(MemberRecovered("x", ash, 1.0))
    failed = {"ensemble": "duo", "member": "birch"}
    assert read(metrics, "gac_member_failures_total", **failed, scope="member", error="MemberLostError") == 1
    assert read(metrics, "gac_member_failures_total", **failed, scope="request", error="MemberError") == 1
    assert read(metrics, "gac_member_recoveries_total", **failed) == 1
    assert read(metrics, "gac_member_restarts_total", **failed) == 1
    assert read(metrics, "gac_member_restarts_total", ensemble="duo", member="ash") == 0


def test_a_step_of_a_shared_engine_counts_once():
    renamed = [{"model": EMBEDDED[0], "name": "mine"}, {"model": EMBEDDED[1]}]
    with (
        Ensemble.load(EMBEDDED[:1], dtype="float32") as one,
        Ensemble.load(renamed, dtype="float32") as other,
        Ensemble.load(EMBEDDED[2:], dtype="float32") as third,
    ):
        assert member_ids(other)[0] == member_ids(one)[0]
        assert one._session.worker is other._session.worker is third._session.worker
        metrics = ServerMetrics(Catalog({"one": one, "other": other, "third": third}))
        steps = []
        remove = third.add_listener(lambda event: steps.append(event) if isinstance(event, StepDone) else None)
        forwards = other.generate("Who", max_tokens=4, drafts=False, threshold=None).stats.members["mine"].forwards
        remove()
        metrics.close()
        one.generate("Who", max_tokens=2)
        assert read(metrics, "gac_engine_step_seconds_count") == len(steps) > 0
        # The shared member is counted where it is named first, and nowhere else.
        assert read(metrics, "gac_member_forward_seconds_count", ensemble="one", member="ash") == forwards
        assert read(metrics, "gac_member_forward_seconds_count", ensemble="other", member="mine") is None
        assert read(metrics, "gac_member_forward_seconds_count", ensemble="other", member="birch") == forwards
        info = {"ensemble": "other", "member": "mine", "source_ensemble": "one", "source_member": "ash"}
        assert read(metrics, "gac_member_info", **info, where="cpu") == 1
        assert read(metrics, "gac_member_weight_bytes", ensemble="one", member="ash") > 0
        assert read(metrics, "gac_member_weight_bytes", ensemble="other", member="mine") is None


def test_state_at_scrape_time(metrics, duo):
    stream = duo.stream(PROMPT, max_tokens=400)
    next(stream)
    assert read(metrics, "gac_requests_running", ensemble="duo") == 1
    assert read(metrics, "gac_requests_waiting", ensemble="duo") == 0
    stream.close()
    deadline = time.monotonic() + 10
    while read(metrics, "gac_requests_running", ensemble="duo") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert read(metrics, "gac_requests_running", ensemble="duo") == 0
    assert read(metrics, "gac_queue_limit", ensemble="duo") == 7
    assert read(metrics, "gac_ensemble_healthy", ensemble="duo") == 1
    assert read(metrics, "gac_member_state", ensemble="duo", member="ash", state="lost") == 0
    states = [
        read(metrics, "gac_member_state", ensemble="duo", member="ash", state=state) for state in ("ready", "running")
    ]
    assert sum(states) == 1
    ash = duo.health().members[0]
    assert read(metrics, "gac_member_cache_bytes", ensemble="duo", member="ash") == ash.cache_bytes > 0
    assert read(metrics, "gac_member_document_cache_bytes", ensemble="duo", member="ash") == ash.document_cache_bytes


def test_listeners_return_fast(metrics, duo):
    """A step has one event of its own and one per member: together at most 0.1 ms."""
    (client, listener) = duo._session.worker.monitor._listeners[-1]
    assert client is duo._session.client
    member = duo.health().members[0].member_id
    events = [ForwardDone("x", member, 0.01, 4, 4), StepDone(0.02, 4, 4, 0)]
    fastest = float("inf")
    for _ in range(5):
        began = time.thread_time()
        for _ in range(200):
            listener(events[0])
            listener(replace(events[1]))
        fastest = min(fastest, (time.thread_time() - began) / 200)
    assert fastest < 1e-4


def test_text_formats(metrics):
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    families = list(text_string_to_metric_families(body.decode()))
    assert {"gac_requests_running", "gac_build_info", "process_cpu_seconds"} <= {family.name for family in families}
    for family in families:
        assert family.documentation
        if family.name.startswith("gac_") and family.type == "counter":
            assert {sample.name for sample in family.samples} <= {f"{family.name}_total", f"{family.name}_created"}
    body, content_type = metrics.render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def known_names(metrics: ServerMetrics) -> set[str]:
    """Names that queries may use, whether there is a sample yet or not."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    families = list(metrics.registry.collect())
    return {family.name + suffix for family in families for suffix in suffixes.get(family.type, [""])}


def labels_of(metrics: ServerMetrics) -> dict[str, set[str]]:
    return {sample.name: set(sample.labels) for family in metrics.registry.collect() for sample in family.samples}


@pytest.mark.parametrize("file", ["grafana/dashboards/gac.json", "alerts.yml"])
def test_queries_use_metrics_and_labels_that_exist(metrics, file):
    text = (EXAMPLES / file).read_text(encoding="utf-8")
    if file.endswith(".json"):
        board = json.loads(text)
        queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
        queries += [variable["definition"] for variable in board["templating"]["list"]]
    else:
        queries = [rule["expr"] for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]
    metrics.observe(record_of(status=404, error="model_not_found"))
    labels = labels_of(metrics)
    names = known_names(metrics)
    used = {name for query in queries for name in re.findall(r"\b(?:gac|process)_\w+", query)}
    assert used <= names, used - names
    assert len(queries) > 8
    for query in queries:
        for name, selector in re.findall(r"\b((?:gac|process)_\w+)\{([^}]*)\}", query):
            given = set(re.findall(r"(\w+)\s*[=!]", selector)) - {"job"}
            assert given <= labels.get(name, given), query
    if file.endswith(".json"):
        own = {name for name in names if name.startswith("gac_")}
        shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
        missing = {name for name in own if re.sub(r"_(bucket|sum|count)$", "", name) not in shown}
        assert missing <= {"gac_member_info"}


def test_files_of_prometheus_and_grafana_fit_together():
    prometheus = yaml.safe_load((EXAMPLES / "prometheus.yml").read_text(encoding="utf-8"))
    assert all((EXAMPLES / name).is_file() for name in prometheus["rule_files"])
    source = yaml.safe_load((EXAMPLES / "grafana/provisioning/datasources/prometheus.yml").read_text(encoding="utf-8"))
    board = json.loads((EXAMPLES / "grafana/dashboards/gac.json").read_text(encoding="utf-8"))
    uids = {target["datasource"]["uid"] for panel in board["panels"] for target in panel.get("targets", [])}
    assert uids == {source["datasources"][0]["uid"]}
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
    assert len({panel["id"] for panel in board["panels"]}) == len(places)


def test_the_route(server):
    answer = httpx.post(f"{server.url}/v1/completions", json={"model": "gac", "prompt": "Who", "max_tokens": 3})
    assert answer.status_code == 200
    response = httpx.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    labels = {"route": ROUTE, "model": "gac", "status": "200"}
    assert next(sample.value for sample in families["gac_requests"].samples if sample.labels == labels) >= 1
    assert "/metrics" not in httpx.get(f"{server.url}/openapi.json").json()["paths"]


def test_the_document_names_all_metrics_and_no_others(metrics):
    text = (EXAMPLES.parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\bgac_\w+", text.partition("## Metrics")[2].partition("\n## ")[0])) - {"gac_"}
    families = {family.name + ("_total" if family.type == "counter" else "") for family in metrics.registry.collect()}
    assert named == {name for name in families if name.startswith("gac_")}
