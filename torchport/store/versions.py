"""Versions of the libraries that were used for a result."""

from importlib.metadata import PackageNotFoundError, version

_ONNXRUNTIME = ("onnxruntime-gpu", "onnxruntime")


def library_versions(*names: str) -> dict[str, str]:
    """Versions by distribution name, without those that are not installed.

    `onnxruntime` stands for whichever of its distributions is installed.
    """
    found = {}
    for name in names:
        for distribution in _ONNXRUNTIME if name == "onnxruntime" else (name,):
            try:
                found[name] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found
