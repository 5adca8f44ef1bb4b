"""Changes to what an export left, with the record of its hashes made to agree.

What a careless tool, or an attacker, would do: `change_onnx(folder, scale_weight("weight", 1.01))`.
"""

import hashlib
import json

import numpy as np
import onnx
from onnx import numpy_helper


def refresh_hash(folder, name):
    """What a careless tool, or an attacker, would do after changing an artifact."""
    record = json.loads(folder.export.read_text())
    record["artifacts"][name]["sha256"] = hashlib.sha256((folder.path / name).read_bytes()).hexdigest()
    folder.export.write_text(json.dumps(record))


def change_onnx(folder, change):
    model = onnx.load(folder.path / "main.onnx")
    change(model.graph)
    onnx.save(model, folder.path / "main.onnx")
    refresh_hash(folder, "main.onnx")


def scale_weight(name, factor):
    def change(graph):
        (tensor,) = (t for t in graph.initializer if t.name == name)
        values = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    return change
