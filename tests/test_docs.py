"""The code in the README, in docs/ and in examples/ is executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from example_scripts import run_example, started_example
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from test_structure import MODULES, imported_modules, package_of
from tokenizers import Tokenizer
from vision_members import picture, vision_members  # noqa: F401

from gac_core import Ensemble

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SERVER = "http://127.0.0.1:8000"
"""Where pages expect ``gac serve``, which the tests' own server stands for."""
VISION, PICTURE = "models/vision", "boat.png"
"""A vision-language model and a picture of the reader, for which those of the tests stand."""
BLOCKS = [
    pytest.param(path.name, code, id=f"{path.stem}-{number}")
    for path in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S))
]


@pytest.mark.parametrize(("page", "code"), BLOCKS)
def test_code_in_documents_runs(page, code, request, monkeypatch, capsys, tmp_path):
    if SERVER in code:
        code = code.replace(SERVER, request.getfixturevalue("server").url)
    if VISION in code:
        (tmp_path / PICTURE).write_bytes(picture(1).data)
        folder = request.getfixturevalue("vision_members")("llava").folder
        code = code.replace(VISION, folder).replace(PICTURE, str(tmp_path / PICTURE))
    monkeypatch.chdir(ROOT)
    exec(compile(code, page, "exec"), {})


def test_the_configuration_of_the_readme_is_that_of_the_examples(monkeypatch):
    path = ROOT / "examples" / "ensemble.yaml"
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert path.read_text(encoding="utf-8").endswith("\n" + block[1])
    monkeypatch.chdir(ROOT)
    with Ensemble.from_config(path) as ensemble:
        assert (ensemble.names, ensemble.gate) == (["ash", "birch"], "ash")
        assert [member.weight for member in ensemble.config.members] == [1.0, 2.0]
        assert ensemble.generate("In which town", max_tokens=2).text


@pytest.mark.parametrize(
    ("run", "name"), [(started_example, "rag_langchain.py"), (run_example, "rag_llamaindex.py")], ids=["lc", "li"]
)
def test_examples_answer_a_question(run, name):
    shown = run(name, "--question", "Where is the Velgin Bridge?", "--max-tokens", "24")
    assert "Where is the Velgin Bridge?" in shown
    assert "The Velgin Bridge crosses the river in Borfen." in shown
    assert "bridges.md" in shown
    assert "right answers" not in shown  # no answer is known


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("chat_langchain.py", ["founded by Garno Rinva", "source: festivals.md"]),
        ("agent_langchain.py", ["year_of (call_", "Tool Message", "answer: building=", "year="]),
    ],
)
def test_examples_run(name, shown):
    printed = run_example(name)
    assert all(text in printed for text in shown), printed


def test_an_answer_of_voices_has_its_source(tmp_path):
    page = (ROOT / "examples" / "handbook" / "bridges.md").read_text(encoding="utf-8")
    (tmp_path / "bridges.md").write_text("\n\n".join(page.split("\n\n")[4:10]), encoding="utf-8")
    asked = ("--documents", str(tmp_path), "--question", "Where is the Velgin Bridge?", "--max-tokens", "24")
    shown = run_example("voices_langchain.py", *asked)
    assert "voices:   The Velgin Bridge crosses the river in Borfen." in shown
    assert "source:   bridges.md (" in shown
    assert "lift:     +" in shown


def test_an_agent_abstains_where_members_disagree():
    asked = ("agent_doubt_langchain.py", "--question", "In which town is the Velgin Bridge?")
    printed = run_example(*asked)
    assert "the members agree on" in printed
    assert "answer: The Velgin Bridge crosses the river in Borfen. (agreement 9" in printed
    assert "answer: I do not know: the models disagree." in run_example(*asked, "--least", "1")


def test_the_embedded_members_are_scored_alone():
    shown = run_example("models/evaluate.py", "--questions", "6", "--members", "birch")
    assert re.match(r"birch: [2-6]/6 right\n", shown)


def test_an_existing_app_takes_three_lines():
    """The diff of the examples' README, as it stands after the change, run on embedded members."""
    diff = re.search(r"```diff\n(.*?)```", (ROOT / "examples" / "README.md").read_text(encoding="utf-8"), flags=re.S)[1]
    after = "".join(line[1:] + "\n" for line in diff.splitlines() if not line.startswith("-"))
    for name, member in (("model-a", "ash"), ("model-b", "birch")):
        after = after.replace(f'"{name}"', repr(str(ROOT / "examples" / "models" / member)))
    names = {"prompt": ChatPromptTemplate.from_messages([("human", "{question}")]), "StrOutputParser": StrOutputParser}
    exec(after, names)
    assert "Torno" in names["chain"].invoke({"question": "In which town is the Torno Bridge?"})
    assert sum(line.startswith("+") for line in diff.splitlines()) <= 3


def test_the_vector_store_finds_the_passages(tmp_path):
    """With an embedding model that averages random vectors of tokens, so that texts with the same words are near."""
    tokenizer = Tokenizer.from_file(str(ROOT / "examples" / "models" / "ash" / "tokenizer.json"))
    torch.manual_seed(0)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=256)], device="cpu").save(str(tmp_path))
    shown = run_example("chat_langchain.py", "--embeddings", str(tmp_path))
    assert "A: The Velgin Bridge crosses the river in Borfen." in shown
    assert "source: bridges.md" in shown


def test_the_handbook_is_what_its_script_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_handbook

    make_handbook.main(tmp_path)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "handbook").iterdir()}
    assert written == kept


def test_the_architecture_lists_every_module():
    """The table of packages names each module once, in its package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed, package = [], ""
    for line in (line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| package")):
        named, modules = (cell.strip() for cell in line.split("|")[1:3])
        package = named.strip("`") or package
        listed += [f"{package}/{name}" for name in re.findall(r"`(\w+)`", modules)]
    found = (path.relative_to(ROOT / "gac_core") for path in (ROOT / "gac_core").rglob("*.py"))
    modules = [
        f"{path.parts[0] if len(path.parts) > 1 else 'root'}/{path.stem}" for path in found if path.stem != "__init__"
    ]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(modules)


def test_arrows_between_packages_are_imports():
    """Also that the picture has every package; arrows that follow from others are left out."""
    picture = re.search(r"```mermaid\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.S)[
        1
    ]
    packages = {path.parent.name for path in (ROOT / "gac_core").glob("*/__init__.py")}
    arrows = {(a, b) for a, b in re.findall(r"(\w+) --> (\w+)", picture) if {a, b} <= packages}
    imports = {
        (package_of(module).split(".")[1], package_of(found).split(".")[1])
        for module in MODULES
        for found in imported_modules(module)
    }
    assert {name for arrow in arrows for name in arrow} == packages
    assert arrows <= imports
