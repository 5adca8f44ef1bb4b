"""Refuses archives that ask for semantics which this server does not have.

    require_known_semantics({"sequenceBatching": True})
    # ArchiveRefused: model-config.yaml: sequenceBatching is True: ...

Such a model would be loaded, and its answers would be wrong: a handler that keeps a sequence's state gets
the requests of one sequence in any worker. Keys that change only when an answer comes are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchport.server.errors import ArchiveRefused

_FLAGS = {
    "sequenceBatching": "all requests of a sequence would have to reach the same worker, in order, and here "
    "each goes to any free worker",
    "continuousBatching": "the handler would have to be called again until it says that an answer is "
    "complete, and here one call gives the whole answer",
    "asyncCommunication": "the handler would have to answer out of order and later, and here each call "
    "answers its own batch",
}
_SEQUENCE = ("sequenceMaxIdleMSec", "sequenceTimeoutMSec", "maxNumSequence", "maxSequenceJobQueueSize")
"""Keys that only models of sequences have. TorchServe up to 0.10 took `sequenceMaxIdleMSec` for
`sequenceBatching`, which it did not have."""

_RUNTIMES = ("python", "python3")


def require_known_semantics(config: Mapping[str, Any]) -> None:
    """Refuse a `model-config.yaml` that wants its model called in another way than this server calls it.

    Raises:
        ArchiveRefused: the message names the key and what would go wrong.
    """
    for key, why in _FLAGS.items():
        if _is_on(key, config.get(key)):
            raise _refusal(f"{key} is {config[key]!r}", why, f"{key}: false")
    sequence = [key for key in _SEQUENCE if config.get(key)]
    if sequence and config.get("sequenceBatching") is None:
        raise _refusal(
            f"{', '.join(sequence)}: for sequences", _FLAGS["sequenceBatching"], "sequenceBatching: false"
        )
    parallel = config.get("parallelType")
    if parallel is not None and str(parallel).strip().lower() not in ("", "none"):
        raise _refusal(
            f"parallelType is {str(parallel)[:40]!r}",
            "one worker would have to be several processes, each with a part of the model",
            'parallelType: ""',
        )


def require_known_runtime(runtime: object) -> str:
    """The manifest's `runtime`; `python` if it names none.

    Raises:
        ArchiveRefused: it is another one, such as TorchServe's `LSP`, for handlers in C++.
    """
    if runtime is None:
        return _RUNTIMES[0]
    if runtime not in _RUNTIMES:
        raise ArchiveRefused(f"the manifest's runtime is {str(runtime)[:40]!r}: handlers here are in Python")
    return str(runtime)


def _is_on(key: str, value: object) -> bool:
    """Whether a flag is set.

    Raises:
        ArchiveRefused: it is neither true nor false. TorchServe would ignore it, and the model would not be
            called as its author meant.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ArchiveRefused(f"model-config.yaml: {key} is {repr(value)[:80]}: true or false is expected")


def _refusal(said: str, why: str, otherwise: str) -> ArchiveRefused:
    return ArchiveRefused(
        f"model-config.yaml: {said}, which torchport serve does not have: {why}, so its answers could be "
        f"wrong. Serve it on TorchServe; or, if the model does without, say {otherwise} in its config"
    )
