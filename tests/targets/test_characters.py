"""The example of a text generator: verified, then streamed by both servers as in process."""

import json

import pytest

import torchport
from tests.conftest import ROOT, run_stages
from tests.kept_builds import kept_build
from tests.server.streams import Stream
from torchport.errors import BadRequest
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets import torchport_serve, torchserve
from torchport.targets.torchserve_setup import Ports

pytestmark = [pytest.mark.road, pytest.mark.serving]

ASKED = {"prompt": "twinkle, twinkle", "length": 30}
RHYME = ", little star,\nhow i wonder wh"


class Address:
    """What `Stream` asks of a server."""

    def __init__(self, ports):
        self.urls = {"inference": f"http://127.0.0.1:{ports.inference}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("characters"))
    kept_build(run_stages, load_recipe(str(ROOT / "tests" / "characters" / "character_model.py")), store)
    return store


def test_in_process_a_streamed_answer_is_its_whole_text(store):
    with torchport.load(store.path / "characters-1.0.mar") as model:
        assert model.predict(ASKED) == RHYME
        with pytest.raises(BadRequest, match="knows no 'X'"):
            model.predict({"prompt": "X"})


def ask_both_ways(server):
    with Stream(server, "characters", ASKED) as stream:
        assert stream.rest().decode() == RHYME
    with Stream(server, "characters", ASKED, Accept="application/x-ndjson") as stream:
        assert [json.loads(line) for line in stream.rest().splitlines()] == list(RHYME)
    with Stream(server, "characters", {"prompt": "X"}) as stream:
        assert (stream.answer.status, b"knows no 'X'" in stream.rest()) == (400, True)


def test_torchport_serve_streams_it(store, tmp_path):
    with torchport_serve.start(store, tmp_path / "run") as server:
        ask_both_ways(server)


def test_torchserve_streams_it(store, tmp_path):
    ports = Ports.free()
    with torchserve.start(store, tmp_path / "run", ports=ports):
        ask_both_ways(Address(ports))
