"""A handler that is a plain function: it answers with what it was given, types included."""

import os
import sys

STARTED = []


def handle(data, context):
    if data is None:  # The one call while the model is loaded.
        STARTED.append(properties(context))
        return None
    return [row_and_context(row, index, context) for index, row in enumerate(data)]


def row_and_context(row, index, context):
    if row.get("body") == b"context":
        return {"now": properties(context), "at start": STARTED}
    if row.get("body") == b"methods":
        return methods(index, context)
    return {
        "fields": {name: described(value) for name, value in row.items()},
        "headers": context.get_all_request_header(index),
    }


def described(value):
    text = bytes(value).decode("latin-1") if isinstance(value, (bytes, bytearray)) else value
    return [type(value).__name__, text]


def properties(context):
    return {
        "attributes": sorted(name for name in dir(context) if not name.startswith("_")),
        "model_name": context.model_name,
        "manifest": context.manifest,
        "system_properties": context.system_properties,
        "model_yaml_config": context.model_yaml_config,
        "request_ids": context.request_ids,
        "stopping_criteria": context.stopping_criteria,
        "sequence headers": [
            context.header_key_sequence_id,
            context.header_key_sequence_start,
            context.header_key_sequence_end,
        ],
        "has metrics": context.metrics is not None,
        "in its folder": os.path.samefile(os.getcwd(), context.system_properties["model_dir"]),
        "folder on path": os.getcwd() in sys.path or "" in sys.path,
        "files": sorted(os.listdir(context.system_properties["model_dir"])),
    }


def methods(index, context):
    found = {
        "id is the request's": context.get_request_id(index) == context.request_ids[index],
        "id of none": context.get_request_id(99),
        "header": context.get_request_header(index, "x-one"),
        "header as it is not written": context.get_request_header(index, "X-TWO"),
        "header of none": context.get_request_header(index, "x-none"),
        "headers are a dict": isinstance(context.get_all_request_header(index), dict),
        "status": context.get_response_status(index),
        "response headers": dict(context.get_response_headers(index)),
        "content type": context.get_response_content_type(index),
        "sequence": context.get_sequence_id(index),
    }
    context.set_response_header(index, "x-three", "3")
    context.set_response_content_type(index, "application/json")
    context.set_all_response_status(203, "Said So")
    processor = context.request_processor[index]
    return found | {
        "then": [context.get_response_status(index), context.get_response_headers(index)],
        "processor": [
            sorted(name for name in dir(processor) if not name.startswith("_")),
            processor.get_request_property("x-one"),
            processor.get_response_header("x-three"),
            processor.get_response_status_code(),
            processor.get_response_status_phrase(),
        ],
    }
