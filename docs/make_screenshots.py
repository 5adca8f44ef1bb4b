"""`python docs/make_screenshots.py`: every report of the store in a real browser, light and dark.

The pictures go to `.cache/screenshots/`. Exit 1 where the browser had anything to say on its console, or a
page tried to fetch something.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image, ImageChops

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1000, 12000
"""Pixels of the window: pages are shorter, and the empty rest of the picture is cut off."""
MARGIN = 40
SCHEMES = {"light": (), "dark": ("--force-dark-mode",)}
TIMEOUT_S = 120


def screenshot(page: Path, picture: Path, browser: str, *options: str) -> list[str]:
    """Draw a page into a PNG file; what the browser's console said."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    command = [
        *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        # Nothing is to be fetched: what a page asks for all the same fails, and the console says so.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        *("--enable-logging=stderr", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={picture}"),
        *options,
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S)
    cut(picture)
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def cut(picture: Path) -> None:
    """Leave out the empty rest below what is drawn."""
    with Image.open(picture) as opened:
        drawn = opened.convert("RGB")
    ground = Image.new("RGB", drawn.size, drawn.getpixel((0, drawn.height - 1)))
    box = ImageChops.difference(drawn, ground).getbbox()
    drawn.crop((0, 0, drawn.width, min(drawn.height, (box[3] if box else 0) + MARGIN))).save(picture)


def find_browser() -> str | None:
    """The first of `BROWSERS` that is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


REPORTS = ("parity", "tuning")


def main(
    store: Annotated[Path, typer.Option(help="The model store.")] = Path("model_store"),
    pictures: Annotated[Path, typer.Option(help="Where they go.")] = Path(".cache") / "screenshots",
) -> None:
    """Draw every report of a store."""
    browser = find_browser()
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed: apt-get install chromium")
    pages = sorted(page for kind in REPORTS for page in store.glob(f".build/*/*/{kind}.html"))
    if not pages:
        sys.exit(f"{store} has no parity.html: torchport verify RECIPE")
    said = []
    for page in pages:
        name = f"{page.parent.parent.name}-{page.parent.name}-{page.stem}"
        for scheme, options in SCHEMES.items():
            picture = pictures / f"{name}-{scheme}.png"
            said += screenshot(page, picture, browser, *options)
            print(picture)
    if said:
        sys.exit("\n".join(said))


if __name__ == "__main__":
    typer.run(main)
