"""The requests to the inference and the metrics API that both servers are asked, by what they are about.

`echo` answers with what its handler was given, `acts` does what the body says.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.targets.conformance_server import Differs, Step

ECHO = "/predictions/echo"
JSON = (("Content-Type", "application/json"),)
FORM = (("Content-Type", "multipart/form-data; boundary=XX"),)
URLENCODED = (("Content-Type", "application/x-www-form-urlencoded"),)
JSON_ARRAY = b"[1]"
REFUSED_FORM = Differs("broken-forms", theirs=200, ours=400)
DESCRIBED = Differs("descriptions", facets=("body",))
OTHER_METHOD = Differs("methods", theirs=200, ours=405)


def typed(kind: str) -> tuple[tuple[str, str], ...]:
    return (("Content-Type", kind),)


def form(*parts: tuple[str, bytes], end: bytes = b"--XX--\r\n") -> bytes:
    """A multipart body; each part has its headers and its content."""
    return b"".join(b"--XX\r\n%b\r\n\r\n%b\r\n" % (head.encode(), content) for head, content in parts) + end


def part(name: str, *, file: str | None = None, kind: str | None = None) -> str:
    """The headers of a part of a form."""
    named = f'; filename="{file}"' if file is not None else ""
    typed = f"\r\nContent-Type: {kind}" if kind else ""
    return f'Content-Disposition: form-data; name="{name}"{named}{typed}'


BODIES = {
    "bytes": Step("POST", ECHO, b"\x00\xff"),
    "bytes of a type": Step("POST", ECHO, b"\x00\xff", typed("application/octet-stream")),
    "PUT": Step("PUT", ECHO, b"abc"),
    "GET": Step("GET", ECHO),
    "GET with a query": Step("GET", f"{ECHO}?a=1&b=2"),
    "POST with a query": Step("POST", f"{ECHO}?a=1", b"x"),
    "nothing": Step("POST", ECHO, b""),
    "no length": Step("POST", ECHO),
    "chunks": Step("POST", ECHO, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", [("Transfer-Encoding", "chunked")]),
    "text": Step("POST", ECHO, "naïve".encode(), typed("text/plain")),
    "text with a charset": Step("POST", ECHO, b"x", typed("text/plain; charset=utf-8")),
    "text that is none": Step("POST", ECHO, b"\xff\xfe", typed("text/csv")),
    "text in another case": Step("POST", ECHO, b"x", typed("Text/Plain")),
    "JSON": Step("POST", ECHO, b'{"a": [1, 2.5, null, true, "\\u00e9"]}', JSON),
    "JSON with a charset": Step("POST", ECHO, JSON_ARRAY, typed("application/json; charset=utf-8")),
    "JSON in another case": Step("POST", ECHO, JSON_ARRAY, typed("Application/JSON")),
    "JSON of another kind": Step("POST", ECHO, JSON_ARRAY, typed("application/ld+json")),
    "JSON broken": Step("POST", ECHO, b"{bad", JSON),
    "JSON empty": Step("POST", ECHO, b"", JSON),
    "JSON with NaN": Step("POST", ECHO, b"[NaN]", JSON),
    "JSON in UTF-16": Step("POST", ECHO, "[1]".encode("utf-16"), JSON),
    "JSON after a byte order mark": Step("POST", ECHO, b"\xef\xbb\xbf[1]", JSON),
    "JSON too deep": Step("POST", ECHO, b"[" * 20_000 + b"]" * 20_000, JSON),
    "JSON with a key twice": Step("POST", ECHO, b'{"a": 1, "a": 2}', JSON),
    "JSON with a large number": Step("POST", ECHO, b"123456789012345678901234567890", JSON),
    "a type that is none": Step("POST", ECHO, JSON_ARRAY, typed(";;")),
    "too large": Step(
        "POST",
        ECHO,
        b"x" * 3_000_000,
        differs=Differs("early-refusals", facets=("headers", "body", "code", "type", "message")),
    ),
    "an expectation": Step("POST", ECHO, b"x", [("Expect", "100-continue")]),
    "an expectation of something else": Step(
        "POST",
        ECHO,
        b"x",
        [("Expect", "more")],
        Differs("early-refusals", facets=("headers", "body", "code", "type", "message")),
    ),
}

FORMS = {
    "a file and a field": Step(
        "POST",
        ECHO,
        form((part("data", file="a.png", kind="image/png"), b"\x89PNG"), (part("k"), b"5")),
        FORM,
    ),
    "files of JSON and text": Step(
        "POST",
        ECHO,
        form(
            (part("data", file="a.json", kind="application/json"), JSON_ARRAY),
            (part("text", file="a.txt", kind="text/plain; charset=utf-8"), b"tx"),
        ),
        FORM,
    ),
    "fields of JSON and text": Step(
        "POST",
        ECHO,
        form((part("data", kind="application/json"), JSON_ARRAY), (part("text", kind="text/plain"), b"tx")),
        FORM,
    ),
    "a file of no type": Step("POST", ECHO, form((part("data", file="a.bin"), b"\x00\xff")), FORM),
    "a name twice": Step("POST", ECHO, form((part("a"), b"1"), (part("a"), b"2")), FORM),
    "parts of nothing": Step("POST", ECHO, form((part("a"), b""), (part("f", file=""), b"")), FORM),
    "a value that is no ASCII": Step("POST", ECHO, form((part("e"), "é".encode())), FORM),
    "no parts": Step("POST", ECHO, form(), FORM),
    "a quoted boundary": Step(
        "POST", ECHO, form((part("a"), b"1")), typed('multipart/form-data; boundary="XX"')
    ),
    "a name without quotes": Step("POST", ECHO, form((part("a").replace('"', ""), b"1")), FORM),
    "by PUT": Step("PUT", ECHO, form((part("a"), b"1")), FORM),
    "another multipart": Step("POST", ECHO, form((part("a"), b"1")), typed("multipart/mixed; boundary=XX")),
    "a type in another case": Step(
        "POST",
        ECHO,
        form((part("a"), b"1")),
        typed("Multipart/Form-Data; boundary=XX"),
        Differs("form-type-case", facets=("body",)),
    ),
    "an empty body": Step("POST", ECHO, b"", FORM, REFUSED_FORM),
    "no last boundary": Step("POST", ECHO, form((part("a"), b"1"), end=b""), FORM, REFUSED_FORM),
    "no boundary at all": Step("POST", ECHO, b"garbage", FORM, REFUSED_FORM),
    "no boundary in the type": Step(
        "POST", ECHO, form((part("a"), b"1")), typed("multipart/form-data"), REFUSED_FORM
    ),
    "a part of no name": Step(
        "POST",
        ECHO,
        form(("Content-Disposition: form-data", b"1")),
        FORM,
        Differs("broken-forms", theirs=500, ours=400),
    ),
    "a part of no disposition": Step(
        "POST",
        ECHO,
        form(("Content-Type: text/plain", b"1")),
        FORM,
        Differs("broken-forms", theirs=500, ours=400),
    ),
    "urlencoded": Step("POST", ECHO, b"a=1&b=two+words&c=%C3%A9", URLENCODED),
    "urlencoded, a name twice": Step("POST", ECHO, b"a=1&a=2", URLENCODED),
    "urlencoded, nothing": Step("POST", ECHO, b"", URLENCODED),
    "urlencoded, no values": Step("POST", ECHO, b"a&b=&c=1", URLENCODED),
    "urlencoded, no UTF-8": Step("POST", ECHO, b"a=%e9", URLENCODED),
    "urlencoded, semicolons": Step("POST", ECHO, b"a=1;b=2", URLENCODED),
    "urlencoded, with a charset": Step(
        "POST", ECHO, b"a=1", typed("application/x-www-form-urlencoded; charset=utf-8")
    ),
    "urlencoded, one name alone": Step(
        "POST", ECHO, b"[4.0]", URLENCODED, Differs("form-without-values", facets=("body",))
    ),
    "urlencoded, an escape that is none": Step(
        "POST", ECHO, b"a=%zz", URLENCODED, Differs("malformed-escapes", theirs=500, ours=200)
    ),
}

PATHS = {
    "ping": Step("GET", "/ping"),
    "ping by POST": Step("POST", "/ping", b"x"),
    "ping with a slash": Step("GET", "/ping/"),
    "more than ping": Step("GET", "/ping/more"),
    "a version": Step("POST", f"{ECHO}/1.0", b"x"),
    "a version with a slash": Step("POST", f"{ECHO}/1.0/", b"x"),
    "more than a version": Step("POST", f"{ECHO}/1.0/a/b%20c/d", b"x"),
    "more than a version, with a slash": Step("POST", f"{ECHO}/1.0/a%2Fb//", b"x"),
    "more than a version, with an empty part": Step("POST", f"{ECHO}/1.0/a//b", b"x"),
    "more than a version, with a query": Step("POST", f"{ECHO}/1.0/a?q=1", b"x"),
    "more than a version, no ASCII": Step("POST", f"{ECHO}/1.0/%C3%A9%E2%98%83", b"x"),
    "a name with a slash": Step("POST", f"{ECHO}/", b"x"),
    "an escaped name": Step("POST", "/predictions/ec%68o", b"x"),
    "an escaped slash": Step(
        "POST", "/predictions/echo%2F1.0", b"x", differs=Differs("encoded-slashes", theirs=200, ours=404)
    ),
    "an escape that is none": Step(
        "POST", "/predictions/echo%zz", b"x", differs=Differs("malformed-escapes", theirs=403, ours=404)
    ),
    "a zero byte": Step("POST", "/predictions/echo%00", b"x"),
    "two slashes first": Step("POST", "//predictions/echo", b"x"),
    "an empty name": Step("POST", "/predictions//1.0", b"x"),
    "no name": Step("POST", "/predictions", b"x"),
    "no name, with slashes": Step("POST", "/predictions//", b"x"),
    "a model that is none": Step("POST", "/predictions/nobody", b"x"),
    "a version that is none": Step("POST", f"{ECHO}/9", b"x"),
    "a model that is none, with a version": Step("POST", "/predictions/nobody/1.0", b"x"),
    "by DELETE": Step("DELETE", ECHO, differs=OTHER_METHOD),
    "by PATCH": Step("PATCH", ECHO, b"x", differs=OTHER_METHOD),
    "by HEAD": Step("HEAD", ECHO),
    "headers": Step("POST", ECHO, b"x", [("X-One", "1"), ("x-one", "2"), ("x-two", "a"), ("x-two", "b")]),
    "headers that are no ASCII": Step("POST", ECHO, b"x", [("x-latin", "é")]),
    "headers that the server sets": Step("POST", ECHO, b"x", [("url_path", "mine"), ("explain", "True")]),
    "explanation": Step("POST", "/explanations/echo", b"x"),
    "explanation of a version": Step("POST", "/explanations/echo/1.0/more", b"x"),
    "explanation of nothing": Step("POST", "/explanations", b"x"),
    "explanation of nobody": Step("POST", "/explanations/nobody", b"x"),
    "invoke": Step("POST", "/models/echo/invoke?a=1&b=two+words&a=3", b"x"),
    "invoke with headers": Step(
        "POST", "/models/echo/invoke", b"x", [("explain", "mine"), ("url_path", "mine")]
    ),
    "invoke with a form": Step("POST", "/models/echo/invoke?a=1", b"a=2", URLENCODED),
    "invoke with a body in the query": Step("POST", "/models/echo/invoke?body=query", b"x"),
    "invoke by GET": Step("GET", "/models/echo/invoke?a=1&c"),
    "invoke with an escape that is none": Step(
        "POST",
        "/models/echo/invoke?a=%zz",
        b"x",
        differs=Differs("malformed-escapes", theirs=403, ours=200),
    ),
    "invoke nobody": Step("POST", "/models/nobody/invoke", b"x"),
    "models": Step("GET", "/models"),
    "more of models": Step("POST", "/models/echo/other", b"x"),
    "invocations": Step("POST", "/invocations?model_name=echo&a=1", b"x"),
    "invocations with a form": Step("POST", "/invocations", b"model_name=echo&a=2", URLENCODED),
    "invocations of no model": Step("POST", "/invocations", b"x"),
    "invocations of nobody": Step("POST", "/invocations?model_name=nobody", b"x"),
    "more of invocations": Step("POST", "/invocations/more", b"x"),
    "predict": Step("POST", "/echo/predict?a=1", b"x"),
    "predict of a version": Step("POST", "/echo/1.0/predict?a=1", b"x"),
    "predict by GET": Step("GET", "/echo/predict?a=1"),
    "predict of nobody": Step("POST", "/nobody/predict", b"x"),
    "predict of a version that is none": Step("POST", "/echo/9/predict", b"x"),
    "KServe 1": Step("POST", "/v1/models/echo:predict?a=1", b'{"instances": [1]}', JSON),
    "KServe 1 by GET": Step("GET", "/v1/models/echo:predict"),
    "KServe 1, explanation": Step("POST", "/v1/models/echo:explain", b'{"instances": [1]}', JSON),
    "KServe 1, nobody": Step("POST", "/v1/models/nobody:predict", b"{}", JSON),
    "KServe 1, another verb": Step("POST", "/v1/models/echo:other", b"{}", JSON),
    "KServe 1, models": Step("GET", "/v1/models"),
    "KServe 1, ready": Step(
        "GET", "/v1/models/echo", differs=Differs("ready-on-inference", theirs=404, ours=200)
    ),
    "KServe 1, nobody ready": Step(
        "GET", "/v1/models/nobody", differs=Differs("ready-on-inference", facets=("type", "message"))
    ),
    "KServe 2": Step(
        "POST",
        "/v2/models/echo/infer",
        b'{"inputs": []}',
        JSON,
    ),
    "the model's description": Step("OPTIONS", ECHO, differs=DESCRIBED),
    "the version's description": Step("OPTIONS", f"{ECHO}/1.0", differs=DESCRIBED),
    "nobody's description": Step("OPTIONS", "/predictions/nobody"),
    "the server's description": Step("OPTIONS", "/", differs=DESCRIBED),
    "the server's description by GET": Step("GET", "/api-description", differs=DESCRIBED),
    "the server's description by POST": Step("POST", "/api-description", b"x", differs=DESCRIBED),
    "more than the description": Step("GET", "/api-description/more"),
    "the root by GET": Step("GET", "/"),
    "the root by POST": Step("POST", "/", b"x"),
    "everything": Step("OPTIONS", "*", differs=Differs("everything", theirs=500, ours=200)),
    "nothing": Step("GET", "/nothing"),
    "more of nothing": Step("GET", "/nothing/at/all/here"),
    "options of nothing": Step("OPTIONS", "/nothing"),
    "an absolute URL": Step(
        "POST", f"http://conformance{ECHO}", b"x", differs=Differs("absolute-urls", theirs=404, ours=200)
    ),
    "a workflow": Step(
        "POST", "/wfpredict/flow", b"x", differs=Differs("workflows", facets=("type", "message"))
    ),
    "a token": Step("GET", "/token"),
    "metrics on the wrong port": Step("GET", "/metrics"),
    "metrics by their description": Step("OPTIONS", "/", differs=DESCRIBED, port="metrics"),
    "metrics' root": Step("GET", "/", port="metrics"),
    "no metrics": Step("GET", "/nothing", port="metrics"),
    "metrics by POST": Step("POST", "/metrics", b"x", differs=OTHER_METHOD, port="metrics"),
}

_SENT = Differs("survived-answers", theirs=500, ours=200)
_PHRASE = Differs("reason-phrase", facets=("phrase",))
_KNOWN = {
    "answer circle": Differs("survived-answers", theirs=500, ours=503),
    "exit": Differs("messages", facets=("message",)),
    "header with a line break": _SENT,
    "header of no text": _SENT,
    "status 404": _PHRASE,
    "status 299": _PHRASE,
    "stream with headers": _PHRASE,
}
_ACTS = (Path(__file__).parent / "archived" / "acts.py").read_text(encoding="utf-8")

ACTS = {
    act: Step("POST", "/predictions/acts", act.encode(), differs=_KNOWN.get(act))
    for act in (name.replace("_", " ") for name in re.findall(r"def (\w+)\(self, data, context\)", _ACTS))
    if act != "handle"
}
"""One for each method of the handler `acts`."""

CONTEXT = {
    "what a handler finds": Step("POST", ECHO, b"context"),
    "what a handler with a config finds": Step("POST", f"{ECHO}/1.0", b"context"),
    "what a handler can ask and set": Step(
        "POST",
        ECHO,
        b"methods",
        [("X-One", "a"), ("x-one", "b"), ("x-two", "c"), ("ts_request_sequence_id", "s1")],
        Differs("header-names", facets=("body", "phrase")),
    ),
}
