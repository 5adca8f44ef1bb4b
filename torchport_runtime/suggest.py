"""The nearest right name, for messages about a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the end of a message about `given`: the nearest of `known`, or all of them.

    >>> did_you_mean("bachend", ["backend", "device"])
    "did you mean 'backend'?"
    """
    names = sorted(known)
    nearest = get_close_matches(given, names, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"known: {', '.join(names) or 'none'}"
