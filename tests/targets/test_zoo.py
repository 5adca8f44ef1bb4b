"""Every kind of model at once: smaller runs of all recipes, the whole road, in one TorchServe; and what
the TorchScript and ONNX Runtime backends answer to the same held-out inputs."""

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import ROOT, run_stages
from tests.kept_builds import kept_build
from torchport.cli.zoo import read_list, ship_all
from torchport.recipe.contract import Recipe, Request
from torchport.recipe.inputs import random_inputs
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.checking import check
from torchport.targets.torchserve import start
from torchport.targets.torchserve_setup import Ports
from torchport.verify.answers.equality import same_answer
from torchport_runtime import write_arrays
from torchport_runtime.boxes import iou

pytestmark = [pytest.mark.serving, pytest.mark.slow]

HELDOUT = 50
"""Answers of each backend that are compared, for each recipe."""

SMALL = {
    "digits_vgg11": {"epochs": 1},
    "digits_detector": {"epochs": 1},
    "sentiment": {"epochs": 1},
    "translate_en_fr": {"epochs": 1},
    "digits_vae": {"epochs": 3},
    "digits_gan": {"epochs": 3},
}
"""Parameters that make a recipe's training small: seconds, on two cores."""

EXAMPLES = {
    "hub": {
        "repo": str(ROOT / "tests" / "example_repo"),
        "entry": "pair_encoder",
        "source": "local",
        "input": ["left:int64:batch,time:0..99", "right:int64:batch,time:0..99"],
        "dim": ["time:1,32"],
    },
    "pretrained": {
        "model": "torchvision.models:squeezenet1_1",
        "argument": ["num_classes=10"],
        "input": ["image:float32:batch,3,64,64"],
    },
}


def file(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # Rotate by 90 degrees to display.
    return exif


PICTURES = {
    "bomb": (file(Image.new("1", (20_000, 20_000))), 413),
    "animated": (
        file(
            Image.new("L", (20, 30)), "GIF", save_all=True, append_images=[Image.new("L", (20, 30), 200)] * 3
        ),
        200,
    ),
    "turned": (file(Image.new("RGB", (40, 20)), "JPEG", exif=turned()), 200),
    "palette": (file(Image.new("P", (30, 30)), transparency=0), 200),
    "sixteen bits": (file(Image.fromarray(np.full((20, 20), 40_000, np.uint16))), 200),
    "cmyk": (file(Image.new("CMYK", (20, 20)), "JPEG"), 200),
    "one pixel": (file(Image.new("L", (1, 1))), 200),
    "truncated": (file(Image.effect_noise((90, 90), 50))[:-500], 400),
    "a text": (b"I am a text file", 400),
    "nothing": (b"", 400),
}
"""What image handlers are sent, each with the status of the answer."""

TEXTS = {
    "a megabyte": (b"word " * 200_000, 413),
    "controls": (b"a \x00 gem \x1b[31m of \x7f a film", 200),
    "scripts": ("gem пример 例子 مثال \u200f👩‍🚀 e\u0301".encode(), 200),
    "unknown": ("例子".encode(), 200),
    "not utf-8": (b"caf\xe9", 400),
    "nothing": (b"", 400),
    "white space": (b" \t\r\n", 400),
    "a lone surrogate": (b'{"text": "\\ud800"}', 400),
}
"""What text handlers are sent."""

HOSTILE = (
    (PICTURES, ("digits_vgg11", "digits_detector", "digits_vae")),
    (TEXTS, ("sentiment", "translate_en_fr")),
)


@dataclass
class Shipped:
    recipe: Recipe
    archive: Path

    def requests(self) -> list[Request]:
        """At least `HELDOUT` inputs that the model was not trained on."""
        heldout = [example.request for example in islice(self.recipe.heldout(), HELDOUT)]
        if heldout:
            return heldout
        (signature,) = self.recipe.signatures().values()
        sizes = {symbol: 1 if symbol == "batch" else high for symbol, (_, high) in signature.dims.items()}
        return [
            Request(
                body=write_arrays(random_inputs(signature, sizes, seed), "npz"),
                params={"output": "json"},
                tensors={},
            )
            for seed in range(100, 100 + HELDOUT)
        ]


@pytest.fixture(scope="module")
def zoo(shipped, tmp_path_factory) -> dict[str, Shipped]:
    """Every recipe's archive, made by the whole road; kept between runs."""
    import torch
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("weights") / "squeezenet.safetensors"
    save_file(squeezenet1_1(num_classes=10).state_dict(), weights)
    made = {}
    for name, parameters in (SMALL | EXAMPLES).items():
        recipe = load_recipe(name, parameters)
        given = weights if name == "pretrained" else None
        made[name] = Shipped(recipe, kept_build(run_stages, recipe, shipped, weights=given))
    return made


@pytest.fixture(scope="module")
def answers(zoo, tmp_path_factory):
    """By backend and recipe: what one TorchServe with all archives answers; and its explanations."""
    store = Store(tmp_path_factory.mktemp("zoo") / "store")
    store.path.mkdir()
    for shipped in zoo.values():
        shutil.copy(shipped.archive, store.path)
    got = {}
    for backend in ("onnxruntime", "torchscript"):
        environment = {"TORCHPORT_BACKEND": backend, "TORCHPORT_THREADS": "1"}
        run = tmp_path_factory.mktemp("run")
        with (
            start(store, run, ports=Ports.free(), environment=environment, timeout_s=400) as server,
            server.client() as client,
            ThreadPoolExecutor(8) as pool,
        ):
            got[backend] = {
                name: list(pool.map(lambda r, n=shipped.recipe.name: ask(client, n, r), shipped.requests()))
                for name, shipped in zoo.items()
            }
            got[backend]["hostile"] = {
                (name, what): post(server, zoo[name], body)
                for bodies, names in HOSTILE
                for what, (body, _) in bodies.items()
                for name in names
            }
            got[backend]["explained"] = {
                name: explained(server, zoo[name]) for name in ("digits_vgg11", "sentiment", "digits_vae")
            }
    return got


def ask(client, name, request):
    return client.predict(
        name, body=request.content, content_type=request.content_type, params=request.params or None
    )


def post(server, shipped, body, route="predictions", content_type="application/octet-stream"):
    url = f"http://127.0.0.1:{server.ports.inference}/{route}/{shipped.recipe.name}"
    answer = requests.post(url, data=body, headers={"Content-Type": content_type}, timeout=60)
    is_json = "json" in answer.headers.get("Content-Type", "")
    return answer.status_code, answer.json() if is_json else answer.content


def explained(server, shipped):
    request = shipped.recipe.requests()[0]
    return post(server, shipped, request.content, "explanations", request.content_type)


@pytest.mark.parametrize("name", [*SMALL, *EXAMPLES])
def test_backends_agree_on_held_out_inputs_over_http(answers, zoo, name):
    onnx, script = answers["onnxruntime"][name], answers["torchscript"][name]
    assert len(onnx) == len(script) >= HELDOUT
    for one, other in zip(onnx, script, strict=True):
        if name == "digits_detector":
            assert_same_objects(one["boxes"], other["boxes"], zoo[name].recipe.handler_options["boxes"])
        elif name == "digits_vgg11":
            assert next(iter(one)) == next(iter(other))
            assert same_answer(one, other)
        else:
            # Texts and labels equal, pictures within a grey level, numbers within float32's rounding.
            assert same_answer(one, other, rtol=1e-3, atol=1e-5), (one, other)


SCORE_ATOL = 1e-3
"""Two backends' scores of one candidate differ by less: rounding of logits, through a sigmoid."""


def assert_same_objects(
    boxes: list[dict[str, Any]], others: list[dict[str, Any]], decoder: dict[str, Any]
) -> None:
    """Each box is in the other answer, too, within a pixel, where more than rounding speaks for it.

    Of overlapping candidates the best is answered: if two score the same, either may be. A box whose
    score is at the minimum may be answered or not.
    """

    def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
        if a["label"] != b["label"] or abs(a["score"] - b["score"]) > SCORE_ATOL:
            return False
        near, corners = np.allclose(a["box"], b["box"], atol=1), [np.array([x["box"]]) for x in (a, b)]
        return near or iou(*corners).item() > decoder["nms_iou"]

    for found, again in ((boxes, others), (others, boxes)):
        for box in found:
            is_certain = box["score"] > decoder["min_score"] + SCORE_ATOL
            assert any(same(box, candidate) for candidate in again) or not is_certain, (box, again)


@pytest.mark.parametrize("backend", ["onnxruntime", "torchscript"])
def test_hostile_inputs_get_an_answer_or_a_reason(answers, backend):
    expected = {
        (name, what): status
        for bodies, names in HOSTILE
        for what, (_, status) in bodies.items()
        for name in names
    }
    got = answers[backend]["hostile"]
    assert {key: status for key, (status, _) in got.items()} == expected
    assert all(said["message"] and said["code"] == status for status, said in got.values() if status != 200)


def test_explanations_need_gradients(answers):
    for name in ("digits_vgg11", "sentiment"):
        status, said = answers["torchscript"]["explained"][name]
        assert status == 200, said
        assert said["label"]
        status, said = answers["onnxruntime"]["explained"][name]
        assert status == 400
        assert "TORCHPORT_BACKEND=torchscript" in said["message"]
    status, said = answers["torchscript"]["explained"]["digits_vae"]
    assert status == 400
    assert "no explanations" in said["message"]


def test_metrics_come_from_answers_over_http(zoo):
    """The road's last stage on one family; goals, which so small a run misses, are told and not hidden."""
    shipped = zoo["digits_vgg11"]
    result = check(shipped.recipe, Store(shipped.archive.parent))
    assert not result.failures
    assert set(result.record["metrics"]) == {"accuracy"}
    assert result.record["heldout_answers"] == 360


def test_a_list_of_recipes_goes_on_after_one_that_fails(write_recipe, tmp_path):
    good = write_recipe()
    bad = write_recipe(("return nn.Linear(3, 2)", "return nn.Linear(4, 2)"), name="bad_recipe")
    missed = write_recipe(
        ("inputs =", "goals = {'mark': '>= 2'}\n    inputs ="), ('"tiny"', '"missed"'), name="missed_recipe"
    )
    listed = tmp_path / "list.yaml"
    listed.write_text("".join(f"- recipe: {path}\n" for path in (bad, missed, good)))
    rows = list(ship_all(read_list(listed), Store(tmp_path / "store")))
    assert [row.passed for row in rows] == [False, False, True]
    assert "mat1 and mat2" in rows[0].problem
    assert "'mark'" in rows[1].problem
    assert rows[2].exported == dict.fromkeys(("onnxruntime", "torchscript", "pt2"), "passed")


def test_pictures_of_a_seed_do_not_depend_on_how_many(answers, zoo, tmp_path):
    import torchport

    with torchport.load(zoo["digits_gan"].archive) as model:
        one, four = (np.asarray(Image.open(io.BytesIO(model.predict({"seed": 3, "n": n})))) for n in (1, 4))
    tile = one.shape[0]
    np.testing.assert_allclose(four[:tile, :tile].astype(int), one.astype(int), atol=1)
