"""Characters a second of 16 clients whose answers one worker streams at once, and of 16 one after another.

    .venv/bin/python -m bench.streaming [--clients 16] [--length 400]

The model is that of `tests/characters`. Both ways ask the same of the same worker. It prints both rates, the
time to the first character, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torchport.export.exporting import export
from torchport.package.packaging import package
from torchport.recipe.loading import load_recipe
from torchport.store.folders import Store
from torchport.targets.torchport_serve import start
from torchport.train.training import train
from torchport.verify.verifying import verify

RECIPE = Path(__file__).parents[1] / "tests" / "characters" / "character_model.py"
PROMPT = "twinkle"
READ_SIZE = 1 << 16
END = b"0\r\n\r\n"


def packaged(folder: Path) -> Store:
    """A store with the model's archive."""
    recipe, store = load_recipe(str(RECIPE)), Store(folder)
    build = store.build(recipe.name, recipe.version)
    train(recipe, build)
    export(recipe, build)
    verify(recipe, build)
    package(recipe, store)
    return store


def ask(address: str, length: int) -> tuple[float, int]:
    """Seconds to the first character, and the number of characters.

    The chunks are read once all have come: a client that parses takes the cores of the server.
    """
    host, port = address.split(":")
    body = json.dumps({"prompt": PROMPT, "length": length}).encode()
    began = time.perf_counter()
    with socket.create_connection((host, int(port)), timeout=600) as sock:
        head = f"POST /predictions/characters HTTP/1.1\r\nhost: {address}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        answer = sock.recv(READ_SIZE)
        first = time.perf_counter() - began
        while not answer.endswith(END):
            answer += sock.recv(READ_SIZE)
    return first, length_of(answer.partition(b"\r\n\r\n")[2])


def length_of(chunks: bytes) -> int:
    """Bytes of a chunked body."""
    total = at = 0
    while at < len(chunks):
        end = chunks.index(b"\r\n", at)
        size = int(chunks[at:end], 16)
        total, at = total + size, end + 2 + size + 2
    return total


def measure(address: str, *, clients: int, at_once: int, length: int) -> tuple[float, float]:
    """Characters a second of all clients, and the mean seconds to the first one."""
    began = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda _: ask(address, length), range(clients)))
    seconds = time.perf_counter() - began
    if any(count != length for _, count in answers):
        raise SystemExit(f"an answer has not {length} characters: {sorted({n for _, n in answers})}")
    return clients * length / seconds, sum(first for first, _ in answers) / clients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--length", type=int, default=400, help="characters of an answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="torchport-bench-") as folder:
        store = packaged(Path(folder) / "store")
        with start(store, Path(folder) / "run") as server:
            address = server.urls["inference"].removeprefix("http://")
            ask(address, options.length)
            rates = {}
            for at_once in (1, options.clients):
                rate, first = measure(
                    address, clients=options.clients, at_once=at_once, length=options.length
                )
                rates[at_once] = rate
                print(
                    f"{options.clients} clients, {at_once:2d} at once: {rate:7.0f} characters a second, "
                    f"first one after {first * 1000:.1f} ms"
                )
            print(f"at once is {rates[options.clients] / rates[1]:.1f} times as fast")


if __name__ == "__main__":
    main()
