"""Both ends of the wire: what servers answer is held against the archive in process, and written down."""

import pytest

from tests.conftest import run_stages
from torchport.cli.overview import overview
from torchport.cli.stages import check as check_stage
from torchport.recipe.loading import load_recipe
from torchport.store.files import read_json, write_json
from torchport.store.serving_record import read_records
from torchport.targets.checking import SERVERS, check
from torchport.verify.verifying import verify

pytestmark = pytest.mark.serving

HELD_OUT = (
    "    def requests",
    """    def heldout(self):
        for x in np.random.default_rng(3).standard_normal((70, 3)).astype(np.float32):
            yield Example(request=Request(json=x.tolist()), expected=None)

    def score(self, answers, expected):
        return {"mean": float(np.mean(answers))}

    def requests""",
)


@pytest.fixture
def shipped_tiny(write_recipe, store):
    recipe = load_recipe(
        write_recipe(("import Recipe, Request", "import Example, Recipe, Request"), HELD_OUT)
    )
    run_stages(recipe, store)
    return recipe, store.build("tiny", "1.0")


def test_every_server_is_asked_and_the_report_says_so(shipped_tiny, store):
    recipe, folder = shipped_tiny
    check_stage(recipe, store, None, "all")
    records = read_records(folder)
    assert [record["server"].partition(" ")[0] for record in records] == ["torchport", "TorchServe"]
    assert len(SERVERS) == len(records)
    for record in records:
        assert record["passed"]
        assert record["heldout_answers"] == 70
        assert record["decisions"] == {
            "compared": 64,
            "agreed": 64,
            "ties": 0,
            "first_differing": [],
        }
    page = folder.report.read_text()
    assert page.count("Over the wire") == 1
    assert all(record["server"] in page for record in records)
    (row,) = (row for row in overview(store) if row["recipe"] == "tiny")
    assert row["state"] == "served and checked"
    # The same certificate again: the page is new, and what servers said of it stays.
    verify(recipe, folder, force=True)
    assert "Over the wire" in folder.report.read_text()


def test_a_server_that_answers_otherwise_fails_with_the_input(shipped_tiny, store, monkeypatch):
    recipe, folder = shipped_tiny

    def turned(client, recipe, request):
        return [-value for value in (asked(client, recipe, request))]

    asked = check.__globals__["ask"]
    monkeypatch.setattr("torchport.targets.checking.ask", turned)
    result = check(recipe, store)
    assert any("held-out 1, served against in process" in failure for failure in result.failures)
    assert result.record["decisions"]["agreed"] == 0
    assert result.record["requests_alike"] == 0
    (row,) = (row for row in overview(store) if row["recipe"] == "tiny")
    assert row["state"].startswith("packaged, failed when served by torchport")


def test_the_page_of_another_certificate_is_left_alone(shipped_tiny, store):
    recipe, folder = shipped_tiny
    certificate = read_json(folder.parity)
    write_json(folder.parity, certificate | {"machine": "another"})
    before = folder.report.read_bytes()
    check(recipe, store)
    assert read_records(folder)[-1]["passed"]
    assert folder.report.read_bytes() == before
