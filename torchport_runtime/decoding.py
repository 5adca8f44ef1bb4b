"""Beam search over numpy arrays, for a batch of sequences.

    def step(tokens, states):            # int64 [n], arrays [n, ...] -> logits [n, vocabulary], new states
        outputs = decoder.run({"previous": tokens, **states, **memory})
        return outputs.pop("logits"), outputs

    tokens, ended = beam_search(step, {"state": first}, begin=2, end=3, width=4, limit=64)

Rows are independent: each gets the answer that it would get alone. The search is deterministic.
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
    """Find each row's likeliest sequence among `width` parallel hypotheses.

    `width=1` is greedy search. A hypothesis is rated by its log probability, divided by its length to the
    power of `length_penalty` (Wu et al., 2016, in its simplest form); 0 favours short sequences. A row is
    over when its best hypothesis has ended, or at `limit` tokens.

    Args:
        step: called with `width` hypotheses for every row, those of one row one after another.
        states: initial values of what `step` passes from token to token: [rows, ...].
        begin, end: the tokens before the first and after the last; `end` fills the sequences up.
        forbidden: tokens that are never chosen.

    Returns:
        tokens int64 [rows, limit], and whether each row has ended, bool [rows].

    Raises:
        ValueError: no state (which would say the number of rows), a width or a limit below 1.
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
    """Indices of each row's `count` largest values, largest first.

    Equal values keep their order.
    """
    found = np.argpartition(-values, count - 1, axis=1)[:, :count]
    found.sort(axis=1)
    order = np.argsort(-np.take_along_axis(values, found, axis=1), axis=1, kind="stable")
    return np.take_along_axis(found, order, axis=1)
