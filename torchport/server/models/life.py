"""The life of a model version, as states.

    version.life                         # Life.SERVING

| state | entered by | a request gets |
|---|---|---|
| LOADING | asked for at the start; its archive is read and unpacked | 503 with `Retry-After` |
| REFUSED | an archive of the start that cannot be served, for good | 503 with the reason |
| STARTING | registered; its first workers load it | its answer once one has, `response_timeout` at most |
| SERVING | a worker has loaded it | its answer, also while workers are replaced |
| FAILING | no worker could load it; others are started after growing pauses | 503 with the reason, at once |
| RESTING | no workers are wanted | 503 |
| LEAVING | unregistered; answers what it has taken | 404: its name is free for another version |
| GONE | its processes are reaped, its folder is removed | 404 |

LOADING and REFUSED are the registry's (`expected.py`); the others are a `ModelVersion`'s. A version is
entered into the registry and taken out of it in one step each, without a wait in between. Whatever goes on
after a wait asks the registry whether the *object* that it began with is still there: the name may be
another's by then.
"""

from __future__ import annotations

from enum import Enum

from torchport.server.dispatch.pool import WorkerPool


class Life(Enum):
    """State of a registered version."""

    STARTING = "STARTING"
    SERVING = "SERVING"
    FAILING = "FAILING"
    RESTING = "RESTING"
    LEAVING = "LEAVING"
    GONE = "GONE"


def life_of(pool: WorkerPool, *, is_leaving: bool) -> Life:
    """The state of a version with these workers."""
    if is_leaving:
        return Life.LEAVING if pool.workers else Life.GONE
    if pool.cannot_load:
        return Life.FAILING
    if not pool.wanted:
        return Life.RESTING
    return Life.SERVING if pool.has_been_ready else Life.STARTING
