"""The example of a text generator: verified, then streamed by both servers as in process."""

import json

import pytest
import requests

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
        # Explanations and tensors are answered between the steps of live rows.
        with Stream(server, "characters", {**ASKED, "length": 100_000}) as stream:
            assert stream.piece()
            url = server.urls["inference"]
            refused = requests.post(f"{url}/explanations/characters", json=ASKED, timeout=60)
            assert (refused.status_code, "no explanations" in refused.text) == (400, True)
            inputs = [
                {"name": "character", "datatype": "INT64", "shape": [1], "data": [0]},
                {"name": "hidden", "datatype": "FP32", "shape": [1, 64], "data": [0.0] * 64},
            ]
            tensors = requests.post(f"{url}/v2/models/characters/infer", json={"inputs": inputs}, timeout=60)
            assert [output["name"] for output in tensors.json()["outputs"]] == ["logits", "new_hidden"]
            assert stream.piece()


def test_torchserve_streams_it(store, tmp_path):
    ports = Ports.free()
    with torchserve.start(store, tmp_path / "run", ports=ports):
        ask_both_ways(Address(ports))
