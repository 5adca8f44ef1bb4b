"""Writes docs/gallery.md: for every kind of model one request and its answer, as shipped by `make zoo`.

    make zoo gallery

The answers are those of the archives in `model_store/`, in process: what a server says over HTTP is held
against the same by `torchport check`. Explanations run on the TorchScript backend.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import torchport
from torchport.errors import TorchportError
from torchport.recipe.contract import Request
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.store.serving_record import read_records
from torchport_runtime import write_arrays

FOLDER = Path(__file__).parent
STORE = Store(Path("model_store"))
URL = "http://127.0.0.1:8080"

HEAD = """# Gallery: every kind of model, one request and its answer

Each is a recipe in `export/`, on the same road: trained, exported, proven, packaged, served. This page was
written by `make zoo gallery`, from the archives that it shipped; the numbers are those of that run,
recomputed from answers over HTTP on inputs that the model was not trained on.

"""


class Page:
    """The page as it grows; pictures go beside it."""

    def __init__(self) -> None:
        self.parts = [HEAD]

    def section(self, name: str, text: str) -> None:
        recipe = load_recipe(name)
        served = (read_records(STORE.build(recipe.name, recipe.version)) or [{}])[-1]
        goals = served.get("goals", {})
        metrics = [
            f"{metric} {value:.4g}" + (f" (goal {goals[metric]})" if metric in goals else "")
            for metric, value in served.get("metrics", {}).items()
        ]
        held = f" Held-out, as served: {', '.join(metrics)}." if metrics else ""
        self.parts.append(f"## {name}\n\n{recipe.task} {text}{held}\n\n")

    def command(self, line: str, answer: Any = None) -> None:
        said = (
            ""
            if answer is None
            else shortened(json.dumps(answer, ensure_ascii=False, default=np.ndarray.tolist))
        )
        self.parts.append(f"```sh\n{line}\n```\n\n" + (f"```json\n{said}\n```\n\n" if said else ""))

    def picture(self, name: str, content: bytes, what: str, enlarge: int = 1) -> None:
        image = Image.open(io.BytesIO(content))
        if enlarge > 1:
            image = image.resize((image.width * enlarge, image.height * enlarge), Image.Resampling.NEAREST)
        (FOLDER / "images").mkdir(exist_ok=True)
        image.save(FOLDER / "images" / name)
        self.parts.append(f"![{what}](images/{name})\n\n")


def shortened(text: str, limit: int = 600) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ..."


def archive(name: str) -> Path:
    versions = STORE.archives().get(name)
    if not versions:
        raise TorchportError(f"{STORE.path} has no archive of {name}: make zoo")
    return list(versions.values())[-1]


def first_request(name: str, wanted: Callable[[Request], bool] = lambda request: True) -> Request:
    return next(request for request in load_recipe(name).requests() if wanted(request))


def is_picture(request: Request) -> bool:
    return request.content_type.startswith("image/") and not request.params


def classifier(page: Page, name: str) -> None:
    page.section(name, "A picture in, its most likely labels out; and why.")
    body = first_request(name, is_picture).content
    with torchport.load(archive(name), backend="torchscript") as model:
        page.picture(f"{name}_request.png", body, "the request", enlarge=12)
        page.command(f"curl -T seven.png {URL}/predictions/{name}", model.predict(body))
        page.command(f"curl -F data=@seven.png -F draw=1 {URL}/explanations/{name} > why.png")
        page.picture(
            f"{name}_why.png", model.explain(body, draw=1), "red spoke for the label, blue against it"
        )


def detector(page: Page) -> None:
    name = "digits_detector"
    page.section(name, "A picture of any size in; boxes in its own pixels, labels and scores out; or drawn.")
    body = first_request(name, is_picture).content
    with torchport.load(archive(name)) as model:
        page.command(f"curl -T scene.png {URL}/predictions/{name}", model.predict(body))
        page.command(f"curl -F data=@scene.png -F draw=1 {URL}/predictions/{name} > drawn.png")
        page.picture(f"{name}.png", model.predict(body, draw=1), "the boxes on the picture")


def sentiment(page: Page) -> None:
    name, text = "sentiment", "A gem of a film, though the second half drags."
    page.section(name, "Text in, label and probability out; and which words said so.")
    with torchport.load(archive(name), backend="torchscript") as model:
        body = {"text": text}
        sent = json.dumps(body)
        page.command(f"curl --json '{sent}' {URL}/predictions/{name}", model.predict(body))
        page.command(f"curl --json '{sent}' {URL}/explanations/{name}", model.explain(body))


def translation(page: Page) -> None:
    name = "translate_en_fr"
    page.section(name, "Text in, text out.")
    body = ["Open the file %1", "Close all tabs", "Show the line numbers"]
    with torchport.load(archive(name)) as model:
        page.command(f"curl --json '{json.dumps(body)}' {URL}/predictions/{name}", model.predict(body))


def pictures(page: Page) -> None:
    seed = {"seed": 7, "n": 16}
    page.section("digits_vae", "A picture in, its reconstruction out; a seed in, a sheet of samples out.")
    body = first_request("digits_vae", is_picture).content
    with torchport.load(archive("digits_vae")) as model:
        page.command(f"curl -F data=@seven.png -F side_by_side=1 {URL}/predictions/digits_vae > both.png")
        page.picture("digits_vae_both.png", model.predict(body, side_by_side=1), "as it came, and again", 4)
        page.command(f"curl --json '{json.dumps(seed)}' {URL}/predictions/digits_vae > sheet.png")
        page.picture("digits_vae_sheet.png", model.predict(seed), "samples of the VAE", 2)
    page.section("digits_gan", "A seed in, a sheet of samples out.")
    with torchport.load(archive("digits_gan")) as model:
        page.command(f"curl --json '{json.dumps(seed)}' {URL}/predictions/digits_gan > sheet.png")
        page.picture("digits_gan_sheet.png", model.predict(seed), "samples of the GAN", 2)


def wrapped(page: Page) -> None:
    page.parts.append(
        "## hub and pretrained\n\nModels that somebody else wrote: the inputs are described, the outputs "
        "found by running the model, and tensors go in and out as JSON or as numpy's files.\n\n"
    )
    with torchport.load(archive("pair_encoder")) as model:
        body = {"left": [5, 6, 7], "right": [5, 6, 8]}
        sent = json.dumps(body)
        page.command(
            "torchport ship hub --repo tests/example_repo --entry pair_encoder --source local \\\n"
            "    --dim time:1,32 --input left:int64:batch,time:0..99 --input right:int64:batch,time:0..99\n"
            f"curl --json '{sent}' {URL}/predictions/pair_encoder",
            [round(x, 4) for x in model.predict(body)],
        )
    with torchport.load(archive("squeezenet1_1")) as model:
        image = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
        npz = write_arrays({"image": image}, "npz")
        page.command(
            "torchport ship pretrained --model torchvision.models:squeezenet1_1 \\\n"
            "    --argument num_classes=10 --input image:float32:batch,3,64,64 \\\n"
            "    --weights squeezenet.safetensors\n"
            f"curl -F data=@image.npz -F output=json {URL}/predictions/squeezenet1_1",
            model.predict(npz, output="json"),
        )


def main() -> None:
    page = Page()
    for name in ("digits_resnet18", "digits_vgg11"):
        classifier(page, name)
    detector(page)
    sentiment(page)
    translation(page)
    pictures(page)
    wrapped(page)
    (FOLDER / "gallery.md").write_text("".join(page.parts).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except TorchportError as err:
        sys.exit(f"error: {err}")
