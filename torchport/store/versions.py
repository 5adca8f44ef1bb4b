"""Versions of torchport and the libraries that a result depends on."""

from importlib.metadata import PackageNotFoundError, version

from torchport.version import __version__

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


def record_head(name: str, version: str) -> dict[str, str]:
    """First keys of a stage's record: torchport's version, recipe and model version."""
    return {"torchport": __version__, "recipe": name, "version": version}
