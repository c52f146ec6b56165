"""Documents and docstrings name only files, commands and symbols that exist."""

from __future__ import annotations

import ast
import re

import pytest
from symbols import ROOT, Index, code_of, unknown

from gac_core import SAMPLING_FIELDS
from gac_core.combination import COMBINERS, GATES

# Names of LangChain, LlamaIndex and other integrations, JSON, transformers, Ray, Kubernetes, OpenTelemetry, shells and
# Python's multiprocessing; and placeholders.
FOREIGN = frozenset(
    [
        *("ChatOpenAI", "StructuredLLMRerank", "ReActAgent", "LLMQuestionGenerator", "CondensePlusContextChatEngine"),
        *("QueryFusionRetriever", "configurable_fields", 'early_stopping_method="generate"'),
        *("init_chat_model", "ToolStrategy", "ProviderStrategy", "OutputParserException"),
        "configurable_alternatives",
        *("create_agent(chat)", "create_agent(response_format=...)", "invalid_tool_calls", "with_config"),
        *("request_timeout", "num_ctx", "model_kwargs", "keep_alive"),
        *("uniqueItems", "kernels", "qwen35", "qwen35moe", "lfm2", "spawn", "search_web", "epsilon_cutoff"),
        *("FaithfulnessEvaluator", "RelevancyEvaluator", "CorrectnessEvaluator", "PairwiseComparisonEvaluator"),
        *("GuidelineEvaluator", "EvaluationData", "LLMSingleSelector", "LLMMultiSelector", "PydanticSingleSelector"),
        *("LLMTextCompletionProgram", "NLSQLTableQueryEngine", "RetryQueryEngine", "Memory", "no_text", "context_only"),
        *("return_direct", "handoff", "Class", "Vllm", "HTTPError", "ResponseError", "BadRequestError", "n_ctx"),
        "RAY_max_direct_call_object_size",
        *("null", "ENSEMBLE/MEMBER", "ulimit -n", "terminationGracePeriodSeconds", "preStop", "Recreate"),
        *("traceparent", "gen_ai.request.model", "h2c", "OPENAI_BASE_URL", "OPENAI_API_KEY"),
        *("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_TRACES_SAMPLER"),
        # lm-evaluation-harness, and names of tasks in it.
        *("gen_prefix", "--num_fewshot", "acc"),
        *("gac_mmlu", "gac_nq", "gac_triviaqa", "gac_bbh", "gac_gsm8k", "gac_squad"),
    ]
)
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md"]
DOCUMENTS += [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def index():
    return Index()


def text_of(document):
    """A document's text; of the changelog its newest section."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return "".join(re.split(r"^(?=## )", text, flags=re.M)[:2]) if document == "CHANGELOG.md" else text


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_what_exists(document, index):
    found = {code: what for code in code_of(text_of(document)) if (what := unknown(code, index, FOREIGN))}
    assert not found


@pytest.mark.parametrize("name", sorted({*SAMPLING_FIELDS, *COMBINERS, *GATES}))
def test_every_parameter_and_rule_is_documented(name):
    pieces = code_of("".join(map(text_of, ("README.md", "docs/configuration.md", "docs/rules.md"))))
    found = any(re.search(rf"(?<![\w.]){name}\b", code) for code in pieces)
    assert found, f"mention `{name}` in README.md, docs/configuration.md or docs/rules.md"


def test_foreign_names_are_named_somewhere():
    pieces = "\n".join(code for document in DOCUMENTS for code in code_of(text_of(document)))
    assert {code for code in FOREIGN if not re.search(rf"(?<!\w){re.escape(code)}", pieces)} == set()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("EnsembleConfig", None),
        ("EnsembleConfig.threshold", None),
        ("Ensemble.generate(prompt, threshold=0.5)", None),
        ("threshold=None", None),
        ("tests/test_docs_symbols.py", None),
        ("make test", None),
        ("python -m benchmarks.accuracy --seed 2", None),
        ("GAC_CONFIG", None),
        ("EnsembleConfiguration", "EnsembleConfiguration"),
        ("EnsembleConfig.treshold", "EnsembleConfig.treshold"),
        ("gac_core.no_such_name", "gac_core.no_such_name"),
        ("Ensemble.generate(no_such_argument=1)", "no_such_argument"),
        ("no_such_setting=True", "no_such_setting"),
        ("tests/no_such_file.py", "file"),
        ("no_such_file.py", "file"),
        ("make no-such-target", "target no-such-target"),
        ("python -m benchmarks.no_such_module", "module benchmarks.no_such_module"),
        ("python -m benchmarks.accuracy --no-such-option", "option --no-such-option"),
        ("GAC_NO_SUCH_VARIABLE", "variable"),
    ],
)
def test_what_does_not_exist_is_found(code, what, index):
    assert unknown(code, index, FOREIGN) == what


def test_docstrings_name_what_exists(index):
    found = {}
    for module, text in index.texts.items():
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in (each for each in ast.walk(ast.parse(text)) if isinstance(each, nodes)):
            for code in code_of(ast.get_docstring(node) or ""):
                if what := unknown(code, index, FOREIGN):
                    found[module, code] = what
    assert not found
