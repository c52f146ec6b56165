"""The comparison's table: what it says of this project's own integration is run here, and its rows are those run."""

from __future__ import annotations

import pytest
from conftest import ROOT

from benchmarks.peer_requests import images, retries
from benchmarks.peers import ROWS, found
from benchmarks.rigs import GaCRig

# LlamaIndex's workflows use what pydantic has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
TABLE = [line.split(" | ") for line in (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def rig():
    rig = GaCRig()
    with rig.ensemble:
        yield rig


@pytest.mark.parametrize("row", ROWS)
def test_the_table_is_right(row, rig):
    (line,) = [cells for cells in TABLE if cells[0] == f"| {row.__doc__.rstrip('.')}"]
    expected = {images: "no (`ImageError`)", retries: "no (`MemberError`)"}
    assert found(row, rig) == line[1] == expected.get(row, "yes")
