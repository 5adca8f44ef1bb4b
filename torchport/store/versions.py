"""Versions of torchport and of the libraries that had a part in a result."""

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
    """The first keys of a stage's record: by which torchport, of which recipe and version."""
    return {"torchport": __version__, "recipe": name, "version": version}
