"""Archives whose handlers are TorchServe's own, or derive from them: a real TorchServe and `torchport serve`
give the same answers. Weights are random, with a fixed seed."""

import base64
import io
import json
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.server.archives import write_archive
from tests.targets.archived.small_net import SmallNet
from tests.targets.archived.text_net import TextNet
from tests.targets.conformance_inference import JSON, form, part, typed
from tests.targets.conformance_server import Both, Step, ask
from torchport.store.folders import Store
from torchport.targets import torchport_serve, torchserve
from torchport.targets.torchserve_setup import Ports

pytestmark = pytest.mark.serving

ARCHIVED = Path(__file__).parent / "archived"
CONFIGURATION = {
    "disable_token_authorization": "true",
    "default_workers_per_model": "1",
    "metrics_mode": "prometheus",
}
WORDS = ["good", "bad", "film", "a", "very", "a good", "good film", "very bad", "bad film", "a very"]
ATOL = 1e-5  # The same float32 operations on the same machine, perhaps on another number of threads.


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def scripted(module, example):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Deprecated, and what there is in archives.
        torch.jit.save(torch.jit.trace(module.eval(), example), buffer)
    return buffer.getvalue()


def names(count):
    return json.dumps({str(index): f"class {index}" for index in range(count)}).encode()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("handlers")
    (folder / "config.properties").write_text("")
    store = Store(folder / "store")
    write_archive(
        store.path,
        "digits",
        (ARCHIVED / "digit_handler.py").read_text(encoding="utf-8"),
        manifest={"modelFile": "small_net.py", "serializedFile": "digits.pt"},
        files={
            "small_net.py": (ARCHIVED / "small_net.py").read_bytes(),
            "digits.pt": saved(SmallNet().state_dict()),
            "index_to_name.json": names(10),
        },
    )
    classifier = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    write_archive(
        store.path,
        "photos",
        "",
        manifest={"handler": "image_classifier", "serializedFile": "photos.pt"},
        files={
            "photos.pt": scripted(classifier, torch.zeros(1, 3, 224, 224)),
            "index_to_name.json": names(32),
        },
    )
    write_archive(
        store.path,
        "reviews",
        "",
        manifest={"handler": "text_classifier", "modelFile": "text_net.py", "serializedFile": "reviews.pt"},
        files={
            "text_net.py": (ARCHIVED / "text_net.py").read_bytes(),
            "reviews.pt": saved(TextNet().state_dict()),
            "source_vocab.pt": saved({word: index for index, word in enumerate(WORDS)}),
            "index_to_name.json": names(3),
        },
    )
    write_archive(
        store.path,
        "sums",
        (ARCHIVED / "sums_handler.py").read_text(encoding="utf-8"),
        config={"handler": {"profile": True}},
        manifest={"serializedFile": "sums.pt"},
        files={"sums.pt": scripted(nn.Linear(3, 2), torch.zeros(1, 3))},
    )
    options = {"config": folder / "config.properties", "settings": CONFIGURATION}
    with (
        torchserve.start(store, folder / "theirs", ports=Ports.free(), **options) as theirs,
        torchport_serve.start(store, folder / "ours", arguments=("--ncs", "--no-grpc"), **options) as ours,
    ):
        ports = ("inference", "management", "metrics")
        their_urls = {name: f"http://127.0.0.1:{getattr(theirs.ports, name)}" for name in ports}
        yield Both(their_urls, dict(ours.urls), store.path)


def picture(seed, mode="L", size=28):
    shape = (size, size) if mode == "L" else (size, size, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def answers(both, step):
    """What both answer, which is 200 and JSON."""
    theirs, ours = both.ask(step)
    assert theirs.status == ours.status == 200, (theirs, ours)
    return theirs.json(), ours.json()


def test_a_state_dict_and_its_class_under_a_derived_handler(both):
    for seed in range(10):
        theirs, ours = answers(both, Step("POST", "/predictions/digits", picture(seed)))
        assert list(ours) == list(theirs)
        assert ours == pytest.approx(theirs, abs=ATOL)
        assert len(ours) == 3
        assert all(name.startswith("class ") for name in ours)


def test_a_picture_may_come_in_any_of_torchserves_ways(both):
    body = picture(3)
    expected = answers(both, Step("POST", "/predictions/digits", body))[1]
    multipart = typed("multipart/form-data; boundary=XX")
    for step in (
        Step(
            "POST",
            "/predictions/digits",
            form((part("data", file="a.png", kind="image/png"), body)),
            multipart,
        ),
        Step("POST", "/predictions/digits", base64.b64encode(body), typed("text/plain")),
        Step("PUT", "/predictions/digits", body, typed("image/png")),
    ):
        theirs, ours = answers(both, step)
        assert ours == pytest.approx(theirs, abs=ATOL)
        assert ours == pytest.approx(expected, abs=ATOL)
    pixels = json.dumps(np.zeros((1, 28, 28)).tolist()).encode()
    theirs, ours = answers(both, Step("POST", "/predictions/digits", pixels, JSON))
    assert ours == pytest.approx(theirs, abs=ATOL)


def test_an_explanation_by_captum(both):
    multipart = typed("multipart/form-data; boundary=XX")
    fields = form((part("data", file="a.png", kind="image/png"), picture(1)))
    for body, headers in ((picture(1), ()), (fields, multipart)):
        theirs, ours = answers(both, Step("POST", "/explanations/digits", body, headers))
        assert np.shape(ours) == (1, 28, 28)
        assert np.abs(ours).max() > 0
        np.testing.assert_allclose(ours, theirs, atol=ATOL)


def test_what_is_no_picture_fails_alike(both):
    both.compare(Step("POST", "/predictions/digits", b"I am a text file"))
    both.compare(Step("POST", "/predictions/digits", b""))
    both.compare(Step("POST", "/predictions/digits", b"{bad", JSON))


def test_the_handler_named_image_classifier(both):
    for seed in range(3):
        body = picture(seed, "RGB", 240)
        theirs, ours = answers(both, Step("POST", "/predictions/photos", body))
        assert ours == pytest.approx(theirs, abs=ATOL)
        assert len(ours) == 5


def test_the_handler_named_text_classifier(both):
    for body, headers in ((b"A <b>good</b> film!", ()), (b"very bad film", typed("text/plain"))):
        theirs, ours = answers(both, Step("POST", "/predictions/reviews", body, headers))
        assert ours == pytest.approx(theirs, abs=ATOL)
        assert sum(ours.values()) == pytest.approx(1)
    both.compare(Step("POST", "/predictions/reviews", b"words that nobody knows"))
    both.compare(Step("POST", "/explanations/reviews", b"a good film"))


def test_a_base_handler_around_torchscript(both):
    for body in (b"[1, 2, 3.5]", b"[-1, 0, 1e3]"):
        theirs, ours = answers(both, Step("POST", "/predictions/sums", body, JSON))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    both.compare(Step("POST", "/explanations/sums", b"[1.0, 2.0, 3.0]", JSON))
    both.compare(Step("GET", "/models/sums?customized=true", port="management"))
    both.compare(Step("POST", "/predictions/sums", b"[1, 2]", JSON))


def test_the_base_handlers_times_are_metrics(both):
    answers(both, Step("POST", "/predictions/sums", b"[1.0, 2.0, 3.0]", JSON))
    for urls in (both.theirs, both.ours):
        deadline = time.monotonic() + 30
        while True:
            text = ask(urls["metrics"], Step("GET", "/metrics")).body.decode()
            found = [
                line for line in text.splitlines() if line.startswith("HandlerTime{") and '"sums"' in line
            ]
            if found:
                break
            assert time.monotonic() < deadline, text
            time.sleep(0.1)
        assert 'ModelName="sums"' in found[0]
        assert 'Level="Model"' in found[0]
