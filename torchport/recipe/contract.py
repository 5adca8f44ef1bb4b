"""The user's contract: one class in one file that builds and trains a model.

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
    """A client's request, and the tensors that the handler must make of it.

    Args:
        json: the body as an object; sent with the content type `application/json`. Or:
        body: the body as bytes, with its `content_type`.
        params: named fields next to the body, such as k; they are sent as a multipart form.
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
        """The body as it is sent over the wire."""
        return self.body if self.body is not None else json_module.dumps(self.json).encode()

    def fields(self) -> dict[str, Any]:
        """The mapping that a server passes to the handler for this request."""
        return {**self.params, "body": self.body if self.body is not None else self.json}


@dataclass(frozen=True, kw_only=True)
class Example:
    """A held-out input and its truth.

    The metric is recomputed over HTTP with it.
    """

    request: Request
    expected: Any


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a server runs the model; becomes TorchServe's keys in `model-config.yaml`.

    Args:
        workers: number of worker processes, minimum and maximum. None: `torchport serve` chooses for its
            machine, and TorchServe starts one.
        batch_size: maximum rows that a worker takes at once.
        max_batch_delay_ms: milliseconds that TorchServe waits for a batch to fill.
        response_timeout_s, startup_timeout_s: seconds after which a worker is restarted.
    """

    workers: int | None = None
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
            if name == "workers" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"serving.{name} is {value!r}: a whole number of at least {least}")

    def model_config(self) -> dict[str, int | str]:
        workers = self.workers or 1
        # A key of its own: TorchServe, and servers that do not know it, take the numbers.
        chosen = {} if self.workers else {"torchport_workers": "auto"}
        return {
            "minWorkers": workers,
            "maxWorkers": workers,
            **chosen,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.max_batch_delay_ms,
            "responseTimeout": self.response_timeout_s,
            "startupTimeout": self.startup_timeout_s,
        }


class Recipe:
    """Base class of recipes. The first line of a subclass's docstring is its task.

    Attributes a recipe sets:
        name, version: of the model; the newest version is a server's default.
        handler: a handler's name (`regressor`, `image_classifier`), or that of a file next to the recipe.
        inputs, outputs: the graph's tensors in the order of `forward`'s arguments and results.
        dims: bounds of the symbolic dimensions, (minimum, maximum).
        backends: backends that are exported and verified; the first is what serves unless told otherwise.
        optional_backends: those of `backends` that may fail to export: the error is recorded.
        precisions: what every backend that can is exported in, such as ("float32", "bfloat16").
        optional_precisions: those of `precisions` that may fail to export or to be verified.
        ships: the backends whose artifacts go into the archive, in every precision that was verified.
        torchscript: "trace" or "script".
        handler_options: what the handler reads as `self.options`; JSON only.
        goals: what the metrics of `score` must reach, such as {"accuracy": ">= 0.97"}.
        options: how the backend runs (device, threads, ...).
        serving: workers, batch size, time limits.
        requirements: packages that the handler needs next to the runtime's, such as "tokenizers>=0.20";
            they become the archive's requirements.txt, which TorchServe installs if it is configured to.
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
    """The file that this recipe was loaded from."""
    sources: dict[str, str]
    """SHA-256 by name: the recipe's file, the files next to it that it imported, its parameters and its
    other dependencies."""
    parameters: Mapping[str, Any] = _NOTHING
    """Arguments that `configure` was called with, defaults included; JSON only."""
    cache: Path = Path(".cache")
    """The folder for data sets."""

    @property
    def task(self) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(self) or "").partition("\n")[0]

    def build(self) -> nn.Module:
        """Build a new model.

        Its weights are not trained yet, or they are pretrained if the recipe has no `train`.
        """
        raise NotImplementedError

    def samples(self) -> Iterable[dict[str, np.ndarray]]:
        """Real inputs to verify with: by name, with a leading batch dimension."""
        raise NotImplementedError

    def requests(self) -> list[Request]:
        """Requests that clients would send, each with the tensors that it must become."""
        raise NotImplementedError

    # A recipe may also have these.

    def configure(self) -> None:
        """Take the recipe's parameters: typed keyword arguments, with defaults if they are optional.

            def configure(self, *, epochs: int = 12): self.epochs = epochs

        It is called before any other method, by `torchport train NAME --epochs 3` for instance. It may
        set any attribute of the recipe, its name, inputs and outputs too. Types are int, float, str,
        bool, pathlib.Path, each also `| None`, and list[str] for an option that may be repeated.
        """

    train: Any = None
    """`train(self, model, run) -> dict[str, float]`: trains in place, returns the metrics."""

    def graphs(self, model: nn.Module) -> dict[str, nn.Module]:
        """The parts of the trained model to export, by graph name.

        It is the whole model unless overridden.
        """
        return {"main": model}

    def signatures(self) -> dict[str, Signature]:
        """Each graph's signature; one graph takes the class's inputs, outputs and dims."""
        return {"main": Signature(inputs=self.inputs, outputs=self.outputs, dims=self.dims)}

    def graph_samples(self, graph: str) -> Iterable[dict[str, np.ndarray]]:
        """Real inputs of one graph.

        A recipe with several graphs overrides this, and then needs no `samples`.
        """
        return self.samples()

    def describe_input(self, graph: str, row: Mapping[str, np.ndarray], assets: Path) -> str:
        """Describe one row of a sample to a reader of the report.

        Return the text that tokens stand for, say. Return "" for numbers and pictures, which the report
        shows by itself.
        """
        return ""

    def calibration(self, graph: str) -> Iterable[dict[str, np.ndarray]]:
        """Inputs of one graph on which `torchport quantize` measures activations' ranges.

        They must be like those that clients send, but not held out. They are the samples unless
        overridden.
        """
        return self.graph_samples(graph)

    def dependencies(self) -> Iterable[Path]:
        """Other files that the model is made from.

        If one changes, the model is trained again.
        """
        return ()

    def heldout(self) -> Iterable[Example]:
        """Inputs that the model was not trained on, with their truths."""
        return ()

    def score(self, answers: list[Any], expected: list[Any]) -> dict[str, float]:
        """The metrics of the served answers to `heldout`.

        Their names are those that `train` returns.
        """
        return {}
