"""`python -m bench.bare_loop MODEL PICTURE`: what one process can do with no server around it.

Decodes, resizes and runs the picture again and again on all cores. It says first what the picture is, with
its probability, as JSON; then, to every line with a number of seconds, it answers with a line of JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime

from torchport_runtime.images import ImageTransform, decode_image


def main() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    picture = Path(sys.argv[2]).read_bytes()
    transform = ImageTransform(size=(224, 224), fit="crop")

    def answer() -> np.ndarray:
        image = transform(decode_image(picture))[None]
        (logits,) = session.run(["logits"], {"image": image})
        return np.asarray(logits[0])

    logits = answer().astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    print(json.dumps([int(logits.argmax()), float(probabilities.max())]), flush=True)
    for line in sys.stdin:
        times, began = [], time.perf_counter()
        end = began + float(line)
        while (now := time.perf_counter()) < end:
            answer()
            times.append((time.perf_counter() - now) * 1e3)
        measured = {
            "per_second": len(times) / (time.perf_counter() - began),
            "median_ms": statistics.median(times),
            "p99_ms": float(np.percentile(times, 99)),
            "worst_ms": max(times),
        }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
