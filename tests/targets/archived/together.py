"""A handler that streams each request's own text back, and at last how many came together."""

import time

from ts.handler_utils.utils import send_intermediate_predict_response


def handle(data, context):
    if data is None:
        return None
    time.sleep(0.2)  # Long enough for others to wait, and then to come together.
    texts = [bytes(row["body"]).decode() for row in data]
    said = "Intermediate Prediction success"
    send_intermediate_predict_response([f"{t} " for t in texts], context.request_ids, said, 200, context)
    return [f"{text} of {len(data)}" for text in texts]
