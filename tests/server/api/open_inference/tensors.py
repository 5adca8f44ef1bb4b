"""Tensors as requests of the protocol have them, of every datatype."""

import json

VALUES = {
    "BOOL": [True, False, False, True],
    "UINT8": [0, 1, 254, 255],
    "INT8": [-128, -1, 0, 127],
    "INT16": [-(2**15), -1, 0, 2**15 - 1],
    "INT32": [-(2**31), -1, 0, 2**31 - 1],
    "INT64": [-(2**63), -1, 0, 2**63 - 1],
    "FP16": [0.5, -2, 65504.0, 0.0],
    "FP32": [0.1, -2, 3.4e38, 16777216.0],
    "FP64": [0.1, -2, 1.7e308, 9007199254740992.0],
}
DTYPES = {
    "BOOL": "bool",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    **{name: name.lower() for name in ("UINT8", "INT8", "INT16", "INT32", "INT64")},
}
HUGE = "a number of 5000 digits"
"""What `written` writes so: 5000 digits are too many for `json.dumps`."""


def written(request):
    return json.dumps(request).replace(f'"{HUGE}"', "9" * 5000).encode()


def tensor(values=(1.5, 2.5), shape=(1, 2), datatype="FP32", name="x", **more):
    data = {} if values is None else {"data": list(values)}
    return {"name": name, "shape": list(shape), "datatype": datatype, **data, **more}


def with_bytes(request, *parts):
    """A body of the binary extension, and its header."""
    head = written(request)
    return b"".join([head, *parts]), {"Inference-Header-Content-Length": str(len(head))}


def binary_input(data, shape, datatype="FP32", name="x"):
    return tensor(None, shape, datatype, name, parameters={"binary_data_size": len(data)})
