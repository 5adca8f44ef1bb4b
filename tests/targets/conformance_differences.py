"""What TorchServe and `torchport serve` answer differently, and why: as `docs/torchserve.md` tells users."""

DIFFERENCES = {
    "methods": (
        "Models are asked by POST, PUT and GET and described by OPTIONS, metrics are read by GET; another "
        "method is 405. TorchServe takes any."
    ),
    "head": "HEAD is answered where GET is, as RFC 9110 wants it. TorchServe's management API answers 405.",
    "broken-forms": (
        "A form that is cut off, has no boundary or a part without a name is 400. TorchServe drops what "
        "it cannot read, or answers 500."
    ),
    "form-type-case": (
        "`Multipart/Form-Data` is a form, as media types have no case. TorchServe hands it to the handler "
        "as one body."
    ),
    "form-without-values": (
        "A name alone in an urlencoded form is a field without a value, wherever it stands. TorchServe "
        "drops the last one."
    ),
    "malformed-escapes": (
        "A `%` that begins no escape stands for itself. TorchServe answers 403, or 500 in a form."
    ),
    "encoded-slashes": (
        "`%2F` in a path is part of a name, so that a proxy and the server see the same path. TorchServe "
        "decodes it before it splits the path."
    ),
    "absolute-urls": (
        "A request whose target is a whole URL is answered, as RFC 9112 wants it. TorchServe answers 404."
    ),
    "everything": "`OPTIONS *` describes the API. TorchServe answers 500.",
    "early-refusals": "413 and 417 have a JSON body that says why. TorchServe's are empty.",
    "header-names": (
        "A handler finds a request's header by its name in any case. On TorchServe it has to spell it as "
        "the client did."
    ),
    "reason-phrase": "The phrase in the status line is the standard one of the status, not the handler's.",
    "survived-answers": (
        "An answer that cannot be sent (a list that holds itself, a header of no text or with a line "
        "break, a status of no number) costs no worker its life. TorchServe's dies of it, and answers 500. "
        "A status outside 200 to 599 is sent as 500."
    ),
    "messages": (
        "Some error messages say more: what is wrong with an archive, the traceback of a handler that "
        "does not load, the number of an incident that the log has too."
    ),
    "descriptions": (
        "OpenAPI descriptions are our own. They have every path and method that TorchServe's have for the "
        "same port."
    ),
    "ready-on-inference": (
        "`GET /v1/models/NAME` answers on the inference port too, where KServe asks for it."
    ),
    "open-inference-protocol": (
        "`/v2` and what is under it is as the protocol says: metadata, readiness, versions, tensors, and "
        '`{"error": ...}` for what is wrong. TorchServe has some of it, in answers of its own. A model whose '
        "archive torchport did not make gets the body as on TorchServe."
    ),
    "workflows": "There are no workflows: `/workflows` and `/wfpredict` are 404.",
    "last-page": (
        "The list's last page has no `nextPageToken`. TorchServe's has one, to an empty page, where it is "
        "full."
    ),
    "wrong-numbers": (
        "A parameter that is no number, or out of its range, is 400. TorchServe takes the default, or "
        "answers 500."
    ),
    "broken-json": "A registration whose body is no JSON object is 400. TorchServe answers 500.",
    "refused-urls": (
        "Archives come from the model store alone: another place is 403, and what is no URL is 400. "
        "TorchServe copies what `allowed_urls` allows into its store, and answers 404 or 500 otherwise."
    ),
    "file-urls": (
        "A `file://` URL may name an archive in the store. TorchServe refuses it, because it is there "
        "already."
    ),
    "failed-registrations": (
        "A registration that fails leaves nothing. TorchServe may leave the model, without workers."
    ),
    "unusable-archives": "An archive whose manifest names no handler is 400. TorchServe answers 500.",
    "batch-delay-of-json": (
        "A registration by JSON that names no `max_batch_delay` gets the default. TorchServe makes -10000 "
        "of it."
    ),
    "customized-metadata": (
        "What a handler describes itself with may be any JSON, or text. TorchServe shows `{}` for what is "
        "no object."
    ),
    "request-ids": (
        "A client's own `x-request-id` is taken over: into the answer, the handler's context and the log. "
        "TorchServe makes one of its own."
    ),
    "keep-alive": "The connection stays open after an error. TorchServe closes it.",
    "more-tokens": (
        "Where tokens are on, metrics and API descriptions want one too. TorchServe shows them to anybody."
    ),
    "token-answers": "`GET /token` answers with a status in JSON. TorchServe's body is empty.",
    "handler-metrics": (
        "Handlers' own metrics are always shown, but for those that would spoil others. TorchServe wants "
        "them named in `metrics_config`, or `model_metrics_auto_detect=true`."
    ),
    "histogram-bounds": (
        "Handlers' histograms have bounds from 1 to 10,000, because times are milliseconds. TorchServe's "
        "end at 10."
    ),
    "missing-metrics": (
        "`WorkerThreadTime`, a time of TorchServe's threads, is not there: "
        "`torchport_inference_seconds` tells of every request. `GPUUtilization`, `GPUMemoryUsed` and "
        "`GPUMemoryUtilization` are left to the driver's own exporter."
    ),
}
"""Each by the name that cases, and the page, call it by."""
