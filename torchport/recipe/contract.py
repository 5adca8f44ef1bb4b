"""The user's contract: one file, one class, that says how to build and train a model.

    class Linear(Recipe):
        name, version, handler = "linear", "1.0", "regressor"
        inputs = {"x": TensorSpec("float32", ("batch", 1))}
        outputs = {"y": TensorSpec("float32", ("batch", 1))}

        def build(self): return nn.Linear(1, 1)
        def train(self, model, run): ...
        def samples(self): yield {"x": np.zeros((1, 1), np.float32)}
        def requests(self): return [Request(json=[4.0], tensors={"x": np.array([[4.0]], np.float32)})]

`torchport.recipe.loading.load_recipe` finds such a file by name or path and checks it.
"""

from __future__ import annotations

import inspect
import json as json_module
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport_runtime import BackendOptions, Signature, TensorSpec
from torchport_runtime.options import DEFAULT_BACKENDS

if TYPE_CHECKING:
    from torch import nn


_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a client would send, and the tensors that the handler should make of it.

    Args:
        json: the body as an object; sent with the content type `application/json`. Or:
        body: the body as bytes, with its `content_type`.
        params: named fields beside the body, such as k; they go as a multipart form.
        tensors: by input name, with a leading batch dimension, exactly.

    Raises:
        ValueError: both or neither of json and body.
    """

    json: Any = None
    body: bytes | None = None
    content_type: str = "application/octet-stream"
    params: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.json is None) == (self.body is None):
            raise ValueError("a Request has either json=... or body=...")
        if self.json is not None:
            object.__setattr__(self, "content_type", "application/json")

    @property
    def content(self) -> bytes:
        """The body as it goes over the wire."""
        return self.body if self.body is not None else json_module.dumps(self.json).encode()

    def fields(self) -> dict[str, Any]:
        """The mapping that a server hands to the handler for this request."""
        return {**self.params, "body": self.body if self.body is not None else self.json}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A held-out input and its truth, for the metric that is recomputed over HTTP."""

    request: Request
    expected: Any


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server should run the model; becomes TorchServe's keys in `model-config.yaml`.

    Args:
        workers: worker processes, at least and at most.
        batch_size: rows that a worker takes at once.
        max_batch_delay_ms: how long TorchServe waits for a batch to fill.
        response_timeout_s, startup_timeout_s: after which a worker is restarted.
    """

    workers: int = 1
    batch_size: int = 8
    max_batch_delay_ms: int = 5
    response_timeout_s: int = 60
    startup_timeout_s: int = 120

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 1),
            ("batch_size", 1),
            ("max_batch_delay_ms", 0),
            ("response_timeout_s", 1),
            ("startup_timeout_s", 1),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"serving.{name} is {value!r}: a whole number of at least {least}")

    def model_config(self) -> dict[str, int]:
        return {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay_ms,
            "responseTimeout": self.response_timeout_s,
            "startupTimeout": self.startup_timeout_s,
        }


class Recipe:
    """Base class of recipes. The first line of a subclass's docstring is its task.

    Attributes a recipe sets:
        name, version: of the model; the newest version is a server's default.
        handler: a handler's name (`regressor`, `image_classifier`), or that of a file beside the recipe.
        inputs, outputs: the graph's tensors in the order of `forward`'s arguments and results.
        dims: bounds of the symbolic dimensions, (least, greatest).
        backends: what is exported and proven; the first is what serves unless told otherwise.
        optional_backends: those of `backends` that may fail to export: the error is written down.
        precisions: what every backend that can is exported in, such as ("float32", "bfloat16").
        optional_precisions: those of `precisions` that may fail to export or to be proven.
        ships: the backends whose artifacts go into the archive, in every precision that was proven.
        torchscript: "trace" or "script".
        handler_options: what the handler reads as `self.options`; JSON only.
        goals: what the metrics of `score` have to reach, such as {"accuracy": ">= 0.97"}.
        options: how the backend runs (device, threads, ...).
        serving: workers, batch size, time limits.
        requirements: packages that the handler needs beside the runtime's, such as "tokenizers>=0.20"; they
            travel as the archive's requirements.txt, which TorchServe installs where it is told to.
    """

    name: str
    version: str = "1.0"
    handler: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    dims: Mapping[str, tuple[int, int]] = _NOTHING
    backends: Sequence[str] = DEFAULT_BACKENDS
    optional_backends: Sequence[str] = ()
    precisions: Sequence[str] = ("float32",)
    optional_precisions: Sequence[str] = ()
    ships: Sequence[str] = ("onnxruntime", "torchscript")
    torchscript: str = "trace"
    handler_options: Mapping[str, Any] = _NOTHING
    goals: Mapping[str, str] = _NOTHING
    options: BackendOptions = BackendOptions()
    serving: Serving = Serving()
    requirements: Sequence[str] = ()

    path: Path
    """The file this recipe was loaded from."""
    sources: dict[str, str]
    """SHA-256 of the recipe's file, of the files beside it that it imported, of its parameters and of
    what else it depends on, by name."""
    parameters: Mapping[str, Any] = _NOTHING
    """What `configure` was called with, defaults included; JSON only."""
    cache: Path = Path(".cache")
    """The folder for data sets."""

    @property
    def task(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self) or "").partition("\n")[0]

    def build(self) -> nn.Module:
        """A new model, its weights not yet trained (or pretrained, where there is no `train`)."""
        raise NotImplementedError

    def samples(self) -> Iterable[dict[str, np.ndarray]]:
        """Real inputs, for parity: by name, with a leading batch dimension."""
        raise NotImplementedError

    def requests(self) -> list[Request]:
        """What clients would send, each with the tensors that it should become."""
        raise NotImplementedError

    # A recipe may also have these.

    def configure(self) -> None:
        """Take the recipe's parameters: keyword arguments with types and, where they are optional, defaults.

            def configure(self, *, epochs: int = 12): self.epochs = epochs

        It is called before anything else, may set any attribute of the recipe (its name, inputs and
        outputs too), and is what `torchport train NAME --epochs 3` ends in. Types are int, float, str, bool,
        pathlib.Path, each also `| None`, and list[str] for what may be repeated.
        """

    train: Any = None
    """`train(self, model, run) -> dict[str, float]`: trains in place, returns the metrics."""

    def graphs(self, model: nn.Module) -> dict[str, nn.Module]:
        """What ships of what was trained, by graph name: the whole model unless overridden."""
        return {"main": model}

    def signatures(self) -> dict[str, Signature]:
        """Each graph's signature; one graph takes the class's inputs, outputs and dims."""
        return {"main": Signature(inputs=self.inputs, outputs=self.outputs, dims=self.dims)}

    def graph_samples(self, graph: str) -> Iterable[dict[str, np.ndarray]]:
        """Real inputs of one graph, where a recipe has several: it then needs no `samples`."""
        return self.samples()

    def describe_input(self, graph: str, row: Mapping[str, np.ndarray], assets: Path) -> str:
        """What one row of a sample is, in words a reader of the report understands: the text that tokens
        stand for, say. Empty for numbers and pictures, which the report shows by itself.
        """
        return ""

    def calibration(self, graph: str) -> Iterable[dict[str, np.ndarray]]:
        """Inputs of one graph that `torchport quantize` measures the ranges of activations on: like those
        that clients send, but none that is held out. The samples, unless overridden."""
        return self.graph_samples(graph)

    def dependencies(self) -> Iterable[Path]:
        """Files beside the recipe's own that the model is made from: changed ones mean training again."""
        return ()

    def heldout(self) -> Iterable[Example]:
        """Inputs that the model did not train on, with their truths."""
        return ()

    def score(self, answers: list[Any], expected: list[Any]) -> dict[str, float]:
        """The metrics of the served answers to `heldout`, by the names that `train` returns."""
        return {}
