"""A handler class that does what the request's body says: answers, raises, streams, counts, describes."""

import json

import torch
from ts.context import Context
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.utils.util import PredictionException


class Acts:
    def initialize(self, context: Context):
        self.batches = 0
        metrics = context.metrics
        self.declared = metrics.add_metric_to_cache(
            metric_name="DeclaredEarly",
            unit="ms",
            dimension_names=["Part"],
            metric_type=MetricTypes.HISTOGRAM,
        )

    def handle(self, data, context):
        if context.get_request_header(0, "describe") == "True":
            return self.describe(context)
        self.batches += 1
        act = bytes(data[0].get("body") or b"").decode()
        return getattr(self, act.replace(" ", "_"))(data, context)

    def describe(self, context):
        how = context.get_request_header(0, "x-describe")
        if how == "raise":
            raise ValueError("nothing to describe")
        return [{None: {"takes": "acts", "made of": [1, 2]}, "list": [1, 2], "text": "acts"}[how]]

    # What can be an answer, and what cannot.

    def answer_bytes(self, data, context):
        return [b"\x00\xffbytes"]

    def answer_bytearray(self, data, context):
        return [bytearray(b"\x01bytes")]

    def answer_text(self, data, context):
        return ["naïve ☃"]

    def answer_empty_text(self, data, context):
        return [""]

    def answer_dict(self, data, context):
        return [{"a": [1, 2.5, None, True], "ü": "☃"}]

    def answer_list(self, data, context):
        return [[1, [2, "three"]]]

    def answer_number(self, data, context):
        return [4.25]

    def answer_none(self, data, context):
        return [None]

    def answer_not_a_number(self, data, context):
        return [[float("nan"), float("inf")]]

    def answer_tensor(self, data, context):
        return [torch.arange(6.0).reshape(2, 3)]

    def answer_set(self, data, context):
        return [{1, 2}]

    def answer_circle(self, data, context):
        circle = []
        circle.append(circle)
        return [circle]

    def answer_too_many(self, data, context):
        return [1, 2]

    def answer_too_few(self, data, context):
        return []

    def answer_no_list(self, data, context):
        return {"not": "a list"}

    def answer_tuple(self, data, context):
        return ("in a tuple",)

    def answer_large(self, data, context):
        return [b"x" * 3_000_000]

    # What can go wrong.

    def raise_value_error(self, data, context):
        raise ValueError("no such luck")

    def raise_memory_error(self, data, context):
        raise MemoryError("all gone")

    def raise_cuda_error(self, data, context):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20 GiB")

    def raise_prediction_exception(self, data, context):
        raise PredictionException("this is no picture", 422)

    def raise_prediction_exception_without_code(self, data, context):
        raise PredictionException("broken inside")

    def raise_prediction_exception_of_507(self, data, context):
        raise PredictionException("too large", 507)

    def exit(self, data, context):
        raise SystemExit(3)

    # What the handler says beside its answer.

    def status_404(self, data, context):
        context.set_response_status(404, "Nobody Here", 0)
        return ["nobody"]

    def status_204(self, data, context):
        context.set_response_status(204, "No Content", 0)
        return [""]

    def status_299(self, data, context):
        context.set_response_status(299, "Nearly", 0)
        return ["x"]

    def status_without_phrase(self, data, context):
        context.set_response_status(code=201, idx=0)
        return ["made"]

    def type_and_headers(self, data, context):
        context.set_response_content_type(0, "text/csv; charset=utf-8")
        context.set_response_header(0, "X-Rows", "1")
        context.set_response_header(0, "x-rows", "2")
        context.set_response_header(0, "Cache-Control", "max-age=5")
        return ["a,b\n"]

    def type_as_a_header(self, data, context):
        context.set_response_header(0, "Content-Type", "text/html")
        return ["<p>"]

    def header_with_a_line_break(self, data, context):
        context.set_response_header(0, "x-bad", "one\r\nx-smuggled: two")
        return ["x"]

    def header_of_no_text(self, data, context):
        context.set_response_header(0, "x-number", 7)
        return ["x"]

    # Streaming.

    def stream(self, data, context):
        for index in range(3):
            send_intermediate_predict_response(
                [f"piece {index} "], context.request_ids, "Intermediate Prediction success", 200, context
            )
        return ["last"]

    def stream_with_headers(self, data, context):
        context.set_response_content_type(0, "text/event-stream")
        context.set_response_header(0, "x-stream", "yes")
        context.set_response_status(201, "Flowing", 0)
        send_intermediate_predict_response(
            [{"token": 1}], context.request_ids, "Intermediate Prediction success", 200, context
        )
        return [{"token": 2}]

    def stream_and_raise(self, data, context):
        send_intermediate_predict_response(
            ["piece "], context.request_ids, "Intermediate Prediction success", 200, context
        )
        raise ValueError("cut off")

    # Metrics.

    def count(self, data, context):
        metrics = context.metrics
        metrics.add_counter("Counted", 2)
        metrics.add_counter("CountedForRequest", 1, idx=0)
        metrics.add_counter("CountedByKind", 1, dimensions=[Dimension("Kind", "good")])
        metrics.add_time("Timed", 12.5)
        metrics.add_time("TimedInSeconds", 2, unit="s")
        metrics.add_time("TimedHistogram", 30, metric_type=MetricTypes.HISTOGRAM)
        metrics.add_size("Sized", 3, unit="MB")
        metrics.add_percent("Parted", 40)
        metrics.add_error("Failed", 1)
        metrics.add_metric("Custom", 5, "count", metric_type=MetricTypes.GAUGE)
        metrics.add_metric("CustomCounter", 1, "count")
        self.declared.add_or_update(7.5, ["front"])
        metrics.get_metric("DeclaredEarly", MetricTypes.HISTOGRAM).add_or_update(1.5, ["back"])
        return ["counted"]

    def count_wrongly(self, data, context):
        metrics, raised = context.metrics, {}
        attempts = {
            "unit of a time": lambda: metrics.add_time("T", 1, unit="h"),
            "unit of a size": lambda: metrics.add_size("S", 1, unit="TB"),
            "unknown metric": lambda: metrics.get_metric("Nobody", MetricTypes.GAUGE),
            "too few values": lambda: self.declared.add_or_update(1, []),
            "negative counter": lambda: metrics.add_counter("Negative", -1),
            "a name that is no text": lambda: metrics.add_metric_to_cache(3, "ms"),
        }
        for name, attempt in attempts.items():
            try:
                attempt()
                raised[name] = None
            except Exception as err:
                raised[name] = type(err).__mro__[-3].__name__
        return [json.dumps(raised)]
