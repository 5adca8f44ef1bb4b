"""The Huffman code of HTTP/2's headers (RFC 7541, appendix B).

    decode_huffman(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff"))        # b"www.example.com"

The code is canonical: codes of one length follow each other in the order of their symbols, so that the
lengths alone define it. Text is decoded half a byte at a time, by a table of the states between two halves.
"""

from __future__ import annotations

_LENGTHS = tuple(
    map(
        int,
        """
        13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28 6 10
        10 12 13 6 8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7
        7 7 7 7 7 7 7 7 7 8 7 8 13 19 13 14 6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11
        14 13 28 20 22 20 20 22 22 22 23 22 23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 23 21 22 23 22 23
        23 24 22 21 20 22 22 23 23 21 23 22 22 24 21 22 23 23 21 21 22 21 23 22 23 23 20 22 22 22 23 22 22
        23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 21 26 27 27 26 27 24 21 21 26 26 28 27 27 27
        20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 27 27 27 28 27 27 27 27 27 26 30
        """.split(),  # noqa: SIM905
    )
)
"""Bits of the code of each byte, and of the end of a text, which is never sent."""

_END = 256


class InvalidCode(ValueError):
    """Bytes that are no text in this code."""


def _tree() -> list[list[int]]:
    """The code as a tree: for each inner node what follows a 0 and a 1.

    A number from 0 on is an inner node; `~symbol` is a leaf.
    """
    nodes = [[0, 0]]
    code = length = 0
    for symbol in sorted(range(len(_LENGTHS)), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code <<= _LENGTHS[symbol] - length
        length = _LENGTHS[symbol]
        node = 0
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            if not nodes[node][bit]:
                nodes.append([0, 0])
                nodes[node][bit] = len(nodes) - 1
            node = nodes[node][bit]
        nodes[node][code & 1] = ~symbol
        code += 1
    return nodes


def _steps(nodes: list[list[int]]) -> list[tuple[int, bytes]]:
    """For each inner node and each half byte: the node after it, and the text that it ends.

    The node is -1 after the code of the end.
    """
    steps = []
    for start in range(len(nodes)):
        for half in range(16):
            node, text = start, b""
            for shift in (3, 2, 1, 0):
                following = nodes[node][half >> shift & 1]
                if following >= 0:
                    node = following
                elif ~following == _END:
                    node = -1
                    break
                else:
                    node, text = 0, text + bytes([~following])
            steps.append((node, text))
    return steps


def _ends(nodes: list[list[int]]) -> frozenset[int]:
    """The nodes at which a text may end: fewer than eight bits, all of them 1, follow its last code."""
    ends, node = {0}, 0
    for _ in range(7):
        node = nodes[node][1]
        ends.add(node)
    return frozenset(ends)


_nodes = _tree()
_STEPS = _steps(_nodes)
_ENDS = _ends(_nodes)


def decode_huffman(coded: bytes) -> bytes:
    """The text of these bytes.

    Raises:
        InvalidCode: they are none.
    """
    steps, node, text = _STEPS, 0, []
    for byte in coded:
        node, piece = steps[node << 4 | byte >> 4]
        if piece:
            text.append(piece)
        if node >= 0:
            node, piece = steps[node << 4 | byte & 15]
            if piece:
                text.append(piece)
        if node < 0:
            raise InvalidCode("the end of a text before its end")
    if node not in _ENDS:
        raise InvalidCode("a text that is cut off")
    return b"".join(text)
