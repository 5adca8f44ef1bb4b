"""The base class of torchport's handlers: batches of requests in, answers out.

A subclass says how one request becomes tensors (`decode`) and how tensors become one answer
(`encode`), if either is not JSON. The base class does the rest: it loads the chosen backend, warms it up,
runs requests of equal shape together, and keeps one bad request from hurting its neighbours.

It speaks TorchServe's handler protocol (`initialize(context)`, `handle(data, context)`) and
imports nothing of TorchServe.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchport_runtime.backends.backend import Backend, open_backend
from torchport_runtime.errors import BadRequest, SignatureError
from torchport_runtime.options import BackendOptions
from torchport_runtime.requests.batching import Tensors, common_sizes, run_pieces, run_together, split_rows
from torchport_runtime.requests.headers import RequestHeaders
from torchport_runtime.requests.json_text import json_text
from torchport_runtime.requests.plain_rows import read_plain_rows, write_plain_rows
from torchport_runtime.requests.request import Answer, InferenceRequest, error_answer
from torchport_runtime.signature import Signature
from torchport_runtime.stream_hooks import StreamHooks
from torchport_runtime.streaming import whole_answers

if TYPE_CHECKING:
    from torchport_runtime.shadow.shadow import Shadow

logger = logging.getLogger(__name__)


class Handler(StreamHooks):
    """Base class of handlers, with these attributes, which `initialize` sets:

    signatures: the graphs' signatures by name; `signature` is that of `main`.
    options: the `torchport.handler:` block of `model-config.yaml`.
    assets: the folder of what the recipe's training put into `run.assets`.
    backends: the loaded graphs by name.
    shadow: the second backend that live traffic is compared with; None unless the configuration asks for
    one.

    A subclass may set `padding`, fill values by input name. Requests of different lengths then share a
    run, filled up to the longest. Without it only requests of equal sizes do.

    A subclass may set `decides`, what the numbers in its answers mean: "label" for scores of classes, of
    which the largest decides, "number" for the wanted values themselves. Verification compares decisions
    by it. Without it, an answer's structure says what is a decision.

    A subclass that has `stream` or `step` streams its answers: see `StreamHooks`.
    """

    padding: ClassVar[Mapping[str, float]] = {}
    decides: ClassVar[str] = ""

    def __init__(self) -> None:
        self.initialized = False
        self.signatures: dict[str, Signature] = {}
        self.options: Mapping[str, Any] = {}
        self.assets = Path()
        self.backends: dict[str, Backend] = {}
        self.shadow: Shadow | None = None

    @property
    def signature(self) -> Signature:
        return self.signatures["main"]

    # What a subclass writes.

    def setup(self) -> None:
        """Read labels, vocabulary and options, once, before the first request."""

    def decode(self, request: InferenceRequest) -> Tensors:
        """One request's input tensors, with a leading batch dimension.

        They enter the graph that `request.graph` names: set it if the model has several.
        Raise `BadRequest` with a reason if the request cannot be read.
        """
        return request.tensors(self.signature)

    def infer(self, graph: str, inputs: Tensors) -> Tensors:
        """Output tensors of one batch for `graph`.

        Override it to run several graphs. The outputs are whatever `encode` needs, with the batch's rows
        first.
        """
        return self.backends[graph].run(inputs)

    def encode(self, request: InferenceRequest, outputs: Tensors) -> Any:
        """One request's answer: a value for JSON, or an `Answer` with bytes.

        `outputs` holds this request's rows only.
        """
        return request.values(self.signature, outputs)

    def explain(self, request: InferenceRequest, tensors: Tensors) -> Any:
        """The answer to a request that asks for an explanation; see `integrated_gradients`."""
        raise BadRequest("this model's handler gives no explanations: ask /predictions")

    # What a server calls.

    def initialize(self, context: Any) -> None:
        """Load the model that `context` points at, and warm it up.

        Raises:
            BackendError: the backend, the device or an artifact is missing.
        """
        folder = Path(context.system_properties["model_dir"])
        config = dict((getattr(context, "model_yaml_config", None) or {}).get("torchport") or {})
        options = BackendOptions.from_config(config, os.environ)
        gpu = context.system_properties.get("gpu_id")
        on_cuda = options.device in ("auto", "cuda") and options.takes_gpu
        if on_cuda and isinstance(gpu, int) and gpu > 0:
            # The server spreads workers over the devices; the first one is what plain cuda means.
            options = BackendOptions(**{**options.to_json(), "device": f"cuda:{gpu}"})
        self.load(folder, options, config.get("handler") or {})
        for name, backend in self.backends.items():
            logger.info("graph %s: %s on %s", name, backend.provider, backend.device)
        self.warm_up()
        self._start_shadow(folder, options)
        self.initialized = True

    def load(self, folder: Path, options: BackendOptions, handler_options: Mapping[str, Any]) -> None:
        """Read an unpacked archive's signature and assets, and open its graphs.

        Raises:
            BackendError: the backend, the device or an artifact is missing.
        """
        self.describe(folder, handler_options)
        self.backends = {
            name: open_backend(folder / f"{name}{options.artifact_suffix}", signature, options)
            for name, signature in self.signatures.items()
        }

    def _start_shadow(self, folder: Path, options: BackendOptions) -> None:
        shadowed = options.shadowed
        if shadowed is None:
            if options.shadow is not None:
                logger.warning("shadow: %s is what serves: there is nothing to compare", options.backend)
            return
        from torchport_runtime.shadow.shadow import Shadow

        self.shadow = Shadow(folder, self.signatures, options)
        for name, backend in self.backends.items():
            self.backends[name] = self.shadow.wrap(name, self.signatures[name], backend)
        logger.info(
            "shadow: %s %s, of %g of the rows", shadowed.backend, shadowed.precision, self.shadow.fraction
        )

    def describe(self, folder: Path, handler_options: Mapping[str, Any]) -> None:
        """Read signature, options and assets only: enough to decode and to encode."""
        graphs = json.loads((folder / "signature.json").read_text(encoding="utf-8"))["graphs"]
        self.signatures = {name: Signature.from_json(graph) for name, graph in graphs.items()}
        self.options = handler_options
        self.assets = folder / "assets"
        self.setup()

    def warm_up(self) -> None:
        """Run every graph on zeros, because first runs are slow.

        Each runs with one row, and with two if it has a batch.
        """
        for name, signature in self.signatures.items():
            for _ in range(2):
                self.backends[name].run(signature.zeros())
            if signature.batch_dim is not None:
                pair = min(2, signature.dims[signature.batch_dim][1])
                self.backends[name].run(signature.zeros({signature.batch_dim: pair}))

    def handle(self, data: Sequence[Mapping[str, Any]], context: Any) -> list[Any]:
        """TorchServe's entry point: rows of requests in, bodies of answers out."""
        if self.shadow is not None:
            self.shadow.report(context.metrics)
        requests = [InferenceRequest(row, RequestHeaders(context, i)) for i, row in enumerate(data)]
        if self.streams and not any(request.wants_explanation for request in requests):
            from torchport_runtime.streamed_batch import stream_batch

            return list(stream_batch(self, data, context))
        bodies = []
        for index, answer in enumerate(self.answer(requests)):
            body, answer = _serialise(answer)
            context.set_response_content_type(index, answer.content_type)
            if answer.status != 200:
                context.set_response_status(code=answer.status, phrase=_phrase(answer.status), idx=index)
            bodies.append(body)
        return bodies

    def answer(self, requests: Sequence[InferenceRequest]) -> list[Answer]:
        """Answer every request; a bad one alone gets a 4xx.

        A streamed answer has all of its pieces together.
        """
        for request in requests:
            request.graphs = tuple(self.signatures)
        if self.streams and not any(request.wants_explanation for request in requests):
            return whole_answers(self, requests)
        if len(requests) > 1:
            together = self._answer_together(requests)
            if together is not None:
                return together
        answers: dict[int, Answer] = {}
        decoded: dict[int, Tensors] = {}
        groups: dict[Any, list[int]] = {}
        for index, request in enumerate(requests):
            try:
                tensors = self.read(request)
            except (BadRequest, SignatureError) as err:
                answers[index] = error_answer(err)
            except Exception:
                answers[index] = _fault("the handler failed to read this request")
            else:
                if request.wants_explanation:
                    answers[index] = _said(partial(self.explain, request, tensors), "to explain")
                    continue
                signature = self.signatures[request.graph]
                alone = index if signature.batch_dim is None else None
                shared = common_sizes(signature, tensors, self.padding)
                groups.setdefault((request.graph, alone, shared), []).append(index)
                decoded[index] = tensors
        for members in groups.values():
            answers |= self._answer_group(members, requests, decoded)
        return [answers[index] for index in range(len(requests))]

    def _answer_together(self, requests: Sequence[InferenceRequest]) -> list[Answer] | None:
        """The answers in less time if all requests are plain, else None."""
        own = type(self)
        if own.decode is not Handler.decode or own.read is not Handler.read:
            return None
        inputs = read_plain_rows(requests, self.signature)
        if inputs is None:
            return None
        try:
            outputs = run_pieces(self.signature, inputs, partial(self.infer, "main"))
        except MemoryError:
            raise
        except Exception:
            return None  # One of the rows may be to blame: they are tried one by one.
        if own.encode is Handler.encode:
            texts = write_plain_rows(outputs)
            if texts is not None:
                return [Answer(text.encode()) for text in texts]
        return [
            _said(partial(self.encode, request, rows), _ENCODING)
            for request, rows in zip(requests, split_rows(outputs, [1] * len(requests)), strict=True)
        ]

    def read(self, request: InferenceRequest) -> Tensors:
        """One request's tensors, with defaults filled in, checked against the signature.

        Raises:
            BadRequest, SignatureError: the request is wrong; the client gets a 4xx.
        """
        tensors = self.decode(request)
        signature = self.signatures[request.graph]
        tensors = signature.with_defaults(tensors)
        signature.check_inputs(tensors, any_batch=True)
        return tensors

    def _answer_group(
        self,
        members: list[int],
        requests: Sequence[InferenceRequest],
        decoded: Mapping[int, Tensors],
    ) -> dict[int, Answer]:
        graph = requests[members[0]].graph
        try:
            outputs = run_together(
                self.signatures[graph],
                [decoded[index] for index in members],
                self.padding,
                lambda inputs: self.infer(graph, inputs),
            )
        except MemoryError:
            raise  # Of the whole worker: TorchServe answers 507 and knows what to do.
        except Exception as err:  # `infer` may be a user's: whatever it raises costs its own row only.
            if len(members) == 1:
                if isinstance(err, (BadRequest, SignatureError)):
                    return {members[0]: error_answer(err)}
                return {members[0]: _fault("the model failed on this input")}
            alone: dict[int, Answer] = {}
            for index in members:
                alone |= self._answer_group([index], requests, decoded)
            return alone
        return {
            index: _said(partial(self.encode, requests[index], rows), _ENCODING)
            for index, rows in zip(members, outputs, strict=True)
        }


_ENCODING = "to write this answer"


def _said(say: Callable[[], Any], what: str) -> Answer:
    """The result of `encode` or `explain`, or its error, as an answer."""
    try:
        value = say()
    except (BadRequest, SignatureError) as err:
        return error_answer(err)
    except Exception:
        return _fault(f"the handler failed {what}")
    return value if isinstance(value, Answer) else Answer(value)


def _serialise(answer: Answer) -> tuple[bytes, Answer]:
    if isinstance(answer.value, (bytes, bytearray)):
        return bytes(answer.value), answer
    try:
        text = json_text(answer.value)
    except (TypeError, ValueError, RecursionError) as err:
        if isinstance(err, ValueError) and "Out of range float" in str(err):
            refusal = BadRequest("the model's answer to this input is NaN or Inf", status=422)
            return _serialise(error_answer(refusal))
        return _serialise(_fault("the handler's answer is nothing that JSON can say"))
    return text.encode("utf-8", "replace"), answer


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


def _fault(what: str) -> Answer:
    """A 500 for one request; only the log has the reason."""
    logger.exception(what)
    return Answer(
        {"code": 500, "type": "InternalServerException", "message": f"{what}: see the model's log"},
        status=500,
    )
