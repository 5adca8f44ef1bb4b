"""The nearest right name, for messages about a wrong one."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of a message about `given`: the nearest name, or all.

    The names are those in `known`.

    >>> did_you_mean("bachend", ["backend", "device"])
    "did you mean 'backend'?"
    """
    names = sorted(known)
    nearest = get_close_matches(given, names, n=1)
    if nearest:
        return f"did you mean {nearest[0]!r}?"
    return f"known: {', '.join(names) or 'none'}"
