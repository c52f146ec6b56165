"""Fixtures: the embedded members, the shared real tokenizers and models, and random models of several architectures."""

from __future__ import annotations

import asyncio
import copy
import functools
import os
import queue
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# No test asks a hub: what is not there is told at once. Must be known before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Ray in tests requires a token. Must be known before Ray is imported.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
# Test processes that run side by side share the cores. Must be known before torch is imported.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
from architectures import random_model
from collecting import pytest_collection, pytest_collection_finish  # noqa: F401
from raynodes import Nodes, pytest_xdist_make_scheduler, skip_without_ray, started_nodes  # noqa: F401
from reference import PlainMember
from server_fixture import server, short_text, works_afterwards  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from gac_core import Ensemble, EnsembleConfig, MemberConfig, default_pool
from gac_core.model.member import Member

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
EMBEDDED = [str(ROOT / "examples" / "models" / name) for name in ("ash", "birch", "cedar")]
REAL = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models")
REAL_NAMES = ("smollm2", "qwen", "gemma3")
STORIES = [str(SHARED / "models" / name) for name in ("stories260K", "babyllama-361")]

LOADS: Counter[str] = Counter()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gac")
    group.addoption("--shuffle", type=int, metavar="SEED", help="run files, and the tests in them, in a random order")
    group.addoption("--report-loads", action="store_true", help="list how often each model was loaded")


def pytest_configure(config: pytest.Config) -> None:
    """Counts models that are loaded from a folder, by folder and dtype."""
    if not config.getoption("--report-loads"):
        return
    inner = AutoModelForCausalLM.from_pretrained

    def counted(*args, **settings):
        folder = Path(str(args[0] if args else settings["pretrained_model_name_or_path"]))
        dtype = str(settings.get("dtype")).removeprefix("torch.")
        LOADS[f"{folder.name if folder.parent.name == 'models' else 'another folder'} in {dtype}"] += 1
        return inner(*args, **settings)

    AutoModelForCausalLM.from_pretrained = counted


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for model, count in sorted(LOADS.items()):
        terminalreporter.write_line(f"loaded {count} times: {model}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hands a worker's counts over to the process that reports them."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["loads"] = dict(LOADS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    for model, count in getattr(node, "workeroutput", {}).get("loads", {}).items():
        LOADS[f"{model} by {node.gateway.id}"] += count


def shuffled(items: list[pytest.Item], seed: int) -> list[pytest.Item]:
    """The tests in another order: files at random, and at random the tests within each, so that fixtures stay few."""
    files: dict[str, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):
        files.setdefault(item.nodeid.partition("::")[0], []).append(item)
    draw = random.Random(seed)
    order = list(files)
    draw.shuffle(order)
    for own in files.values():
        draw.shuffle(own)
    return [item for file in order for item in files[file]]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--shuffle") is not None:
        items[:] = shuffled(items, config.getoption("--shuffle"))
    skip_without_ray(items)
    missing = pytest.mark.skip(reason="the folder ../shared with real tokenizers and models is not here")
    unmade = pytest.mark.skip(
        reason=f"no real models in {REAL} (set GAC_REAL_MODELS, or run: python ../shared/tools/real_models.py)"
    )
    for item in items:
        if item.get_closest_marker("real") and not all((REAL / name).is_dir() for name in REAL_NAMES):
            item.add_marker(unmade)
        if item.get_closest_marker("shared") and not SHARED.exists():
            item.add_marker(missing)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory) -> Iterator[None]:
    """No test reads or writes the user's cache; the processes of xdist share one, so that tables are built once."""
    base = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAC_CACHE_DIR", str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def loaded_models(own_cache) -> Iterator[None]:
    """Keeps the embedded models in the pool, so that each is loaded once per session however often tests ask for it.

    With limits that no test uses, so that tests do not share KV caches because of this.
    """
    with ExitStack() as leases:
        for dtype in ("auto", "float32"):
            members = tuple(MemberConfig(folder, dtype=dtype) for folder in EMBEDDED)
            leases.enter_context(default_pool().acquire(EnsembleConfig(members, cache_gib=0, prefill_tokens=4000)))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_default_loop() -> None:
    """`asyncio.get_event_loop` raises where no loop was set.

    LlamaIndex runs coroutines on the loop that it would make otherwise, and nothing closes that one: a warning in
    whichever test runs when it is collected.
    """
    asyncio.set_event_loop(None)


@pytest.fixture(scope="session")
def ensemble() -> Iterator[Ensemble]:
    """The three embedded members, in fp32."""
    with shared_ensemble(EMBEDDED) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def ray_nodes(own_cache) -> Iterator[Nodes]:
    """Two nodes of Ray on this machine, whose calls need a token; with actors of the first two embedded members."""
    with started_nodes() as nodes, nodes.load(EMBEDDED[:2]):
        yield nodes


@pytest.fixture(scope="session")
def tokenizer():
    """The first embedded member's tokenizer; not to be changed."""
    return tokenizer_of(EMBEDDED[0])


@pytest.fixture(scope="session")
def stories() -> Iterator[Ensemble]:
    """Two real story models with different tokenizers, in fp32."""
    with shared_ensemble(STORIES) as loaded:
        yield loaded


@functools.cache
def tokenizer_of(folder: str):
    """A folder's tokenizer; loaded once, so not to be changed."""
    return AutoTokenizer.from_pretrained(folder)


def pair(folder: str, dtype: str = "float32"):
    """A folder's model and tokenizer; loaded once, so not to be changed."""
    return _loaded(folder, dtype)


@functools.cache
def _loaded(folder: str, dtype: str):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval(), tokenizer_of(folder)


def copied_pair(folder: str):
    """A folder's model and tokenizer, to be changed."""
    return copy.deepcopy(pair(folder))


def shared_ensemble(folders, dtype: str = "float32", weights=None, **settings) -> Ensemble:
    """An ensemble on models that are loaded once per session; a folder given twice is a copy of its member."""
    folders = [str(folder) for folder in folders]
    names = [Path(folder).name for folder in folders]
    names = [name if name not in names[:place] else f"{name}-{place}" for place, name in enumerate(names)]
    members = [
        MemberConfig(folder, name=name, weight=weight, dtype=dtype)
        for folder, name, weight in zip(folders, names, weights or [1.0] * len(folders), strict=True)
    ]
    config = EnsembleConfig(tuple(members), **settings)
    parts = {
        "cache_bytes": int(config.cache_gib * 2**30),
        "document_cache_bytes": int(config.document_cache_gib * 2**30),
        "prefill_tokens": config.prefill_tokens,
        "deterministic": config.deterministic,
    }
    return Ensemble(
        [Member.from_model(*pair(member.model, dtype), member.called, **parts) for member in members], config
    )


def member_ids(ensemble: Ensemble) -> list[str]:
    """What identifies the members of an ensemble in their engine; ensembles that share them have the same ids."""
    return [member.member_id for member in ensemble._members]


class RealModels:
    """The real models, each loaded once per dtype however many ensembles are made of it."""

    def folder(self, name: str) -> str:
        """Where a model lies."""
        return str(REAL / name)

    def pair(self, name: str, dtype: str = "float32"):
        """A model and its tokenizer; not to be changed."""
        return pair(self.folder(name), dtype)

    def ensemble(self, *names: str, **settings) -> Ensemble:
        """An ensemble of loaded models, to be closed by whoever asks; a name given twice is a copy of its member."""
        return shared_ensemble([self.folder(name) for name in names], **settings)


@pytest.fixture(scope="session")
def real() -> RealModels:
    """The real models."""
    return RealModels()


@pytest.fixture(scope="session")
def plain_members() -> list[PlainMember]:
    """The three embedded members as the float64 reference reads them."""
    return [PlainMember(*pair(folder)) for folder in EMBEDDED]


def random_pair(name: str, seed: int = 0):
    """A random model of an architecture, which hardly ever ends its text, with the first embedded tokenizer."""
    tokenizer = tokenizer_of(EMBEDDED[0])
    return random_model(name, tokenizer, seed), tokenizer


def ensemble_of(models, **settings) -> Ensemble:
    """An ensemble of loaded (model, tokenizer) pairs, named m0, m1, ..."""
    weights = settings.pop("weights", [1.0] * len(models))
    contexts = settings.pop("contexts", [None] * len(models))
    names = [f"m{index}" for index in range(len(models))]
    members = [
        Member.from_model(model, tokenizer, name, context)
        for (model, tokenizer), name, context in zip(models, names, contexts, strict=True)
    ]
    configs = tuple(MemberConfig(name, name=name, weight=w) for name, w in zip(names, weights, strict=True))
    return Ensemble(members, EnsembleConfig(configs, **settings))


def talking_pairs(templates: bool = True):
    """Two random models with different tokenizers, with chat templates or without, and room for long conversations."""
    tokenizers = [copy.deepcopy(tokenizer_of(folder)) for folder in EMBEDDED[:2]]
    for tokenizer in tokenizers:
        tokenizer.chat_template = tokenizer.chat_template if templates else None
    return [
        (random_model("llama", tokenizer, seed, max_position_embeddings=4096), tokenizer)
        for seed, tokenizer in enumerate(tokenizers)
    ]


@pytest.fixture(scope="session")
def talkers():
    """Two random members with different tokenizers, chat templates, and room for long conversations."""
    with ensemble_of(talking_pairs()) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def both():
    """Two random members, whose texts do not end."""
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)]) as loaded:
        yield loaded


def start(ensemble: Ensemble, prompt, **asked):
    """A stream whose request has begun before it is read."""
    request, reply = ensemble._input_processor.request(prompt, None, asked)
    events: queue.SimpleQueue = queue.SimpleQueue()
    ensemble._session.submit(request, events.put)

    def read():
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield reply.read(event)
                if event.output is not None:
                    return
        finally:
            ensemble._session.abort(request.request_id)

    return read()


# A prompt that the embedded members go on about: no end of text in the first tokens.
LONG_PROMPT = "passages " * 30
QUESTION = [
    {"role": "system", "content": "Answer the question from the passages. If the passages do not tell, say so."},
    {
        "role": "user",
        "content": "Passages:\n\nThe Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. "
        "It was built in 1874. It is made of stone.\n\nQuestion: In which town is the Torno Bridge?",
    },
]
