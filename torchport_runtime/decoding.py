"""Sequences out of a model that says the next token: beam search over numpy arrays, for a whole batch.

    def step(tokens, states):            # int64 [n], arrays [n, ...] -> logits [n, vocabulary], new states
        outputs = decoder.run({"previous": tokens, **states, **memory})
        return outputs.pop("logits"), outputs

    tokens, ended = beam_search(step, {"state": first}, begin=2, end=3, width=4, limit=64)

Rows do not see each other: a row's answer is the one that it would have alone. There is no chance in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

States = Mapping[str, np.ndarray]
Step = Callable[[np.ndarray, States], tuple[np.ndarray, States]]


def beam_search(
    step: Step,
    states: States,
    *,
    begin: int,
    end: int,
    forbidden: Sequence[int] = (),
    width: int = 4,
    length_penalty: float = 1.0,
    limit: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """The likeliest sequence of each row that `width` parallel hypotheses find; `width=1` is greedy.

    A hypothesis is worth its log probability divided by its length to the power of `length_penalty`
    (Wu et al., 2016, in its simplest form); 0 favours short sequences. A row is over when its best
    hypothesis has ended, or at `limit` tokens.

    Args:
        step: called with `width` hypotheses for every row, those of one row one after another.
        states: what `step` hands on from token to token, for the rows alone [rows, ...].
        begin, end: the tokens before the first and after the last; `end` fills the sequences up.
        forbidden: tokens that never come out.

    Returns:
        tokens int64 [rows, limit], and whether each row has ended, bool [rows].

    Raises:
        ValueError: no state (nothing says how many rows there are), a width or a limit below 1.
    """
    if not states or width < 1 or limit < 1:
        raise ValueError(f"{len(states)} states, width {width}, limit {limit}: at least 1 of each")
    rows = len(next(iter(states.values())))
    states = {name: np.repeat(array, width, axis=0) for name, array in states.items()}
    tokens = np.full((rows, width, limit), end, dtype=np.int64)
    # The hypotheses of a row start alike: all but the first are out until the first token tells them apart.
    scores = np.where(np.arange(width) == 0, 0.0, -np.inf) * np.ones((rows, 1))
    lengths = np.zeros((rows, width))
    ended = np.zeros((rows, width), dtype=bool)
    over = np.zeros(rows, dtype=bool)
    last = np.full(rows * width, begin, dtype=np.int64)
    first_of_row = np.arange(rows)[:, None] * width
    for position in range(limit):
        logits, new = step(last, states)
        vocabulary = logits.shape[-1]
        following = _log_softmax(logits, forbidden).reshape(rows, width, vocabulary)
        # What has ended goes on as itself, at no cost.
        following[ended] = np.where(np.arange(vocabulary) == end, 0.0, -np.inf)
        totals = scores[:, :, None] + following
        grown = lengths + ~ended
        worth = (totals / grown[:, :, None] ** length_penalty).reshape(rows, -1)
        best = _greatest(worth, width)
        parents, chosen = best // vocabulary, best % vocabulary
        # A row that is over stays as it is, whatever its neighbours still do.
        parents[over], chosen[over] = np.arange(width), end
        tokens = np.take_along_axis(tokens, parents[:, :, None], axis=1)
        tokens[:, :, position] = chosen
        moved = np.take_along_axis(totals.reshape(rows, -1), best, axis=1)
        scores = np.where(over[:, None], scores, moved)
        lengths = np.where(over[:, None], lengths, np.take_along_axis(grown, parents, axis=1))
        ended = np.where(over[:, None], ended, np.take_along_axis(ended, parents, axis=1) | (chosen == end))
        over |= ended[:, 0]
        if over.all():
            break
        flat = (first_of_row + parents).reshape(-1)
        states = {name: array[flat] for name, array in new.items()}
        last = chosen.reshape(-1)
    return tokens[:, 0], ended[:, 0]


def _log_softmax(logits: np.ndarray, forbidden: Sequence[int]) -> np.ndarray:
    shifted: np.ndarray = logits.astype(np.float64)
    shifted[:, list(forbidden)] = -np.inf
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _greatest(values: np.ndarray, count: int) -> np.ndarray:
    """Where each row's `count` greatest values are, greatest first, the first of equals before the others."""
    found = np.argpartition(-values, count - 1, axis=1)[:, :count]
    found.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
