"""Shadow inside a real TorchServe, on the configuration that ships: the same metrics under the same names."""

import pytest

from tests.server.shadows import looked_at, metrics_when, with_shadow, wrong_artifact
from torchport.store import Store
from torchport.torchserve import start
from torchport.torchserve_setup import Ports

pytestmark = pytest.mark.serving


def test_a_wrong_second_backend_shows_in_torchserves_metrics(linear_archive, tmp_path):
    with_shadow(linear_archive, tmp_path / "store" / "linear-1.0.mar", 0.5, artifact=wrong_artifact())
    ports = Ports.free()
    with (
        start(Store(tmp_path / "store"), tmp_path / "run", ports=ports) as server,
        server.client() as client,
    ):

        def told(found):
            # TorchServe has no moment between two requests in which a handler could say something.
            client.predict("linear", json=[4.0])
            return found.get("ShadowDisagreements", 0) >= 5

        for _ in range(20):
            client.predict("linear", json=[4.0])
        found = metrics_when(f"http://127.0.0.1:{ports.metrics}", told)
        assert looked_at(found) >= found["ShadowRows"] == found["ShadowDisagreements"]
        assert found["ShadowMaxDifference"] == pytest.approx(1018, abs=2)
