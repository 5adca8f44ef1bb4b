"""Header compression: the examples of RFC 7541, appendix C, and what is wrong with blocks."""

import pytest

from torchport.server.grpc.http2.hpack import (
    MAX_LIST_BYTES,
    CompressionError,
    HeaderDecoder,
    HeadersTooLarge,
)
from torchport.server.grpc.http2.huffman import InvalidCode, decode_huffman

REQUESTS = {
    "literals": (
        "828684410f7777772e6578616d706c652e636f6d",
        "828684be58086e6f2d6361636865",
        "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
    ),
    "Huffman": (
        "828684418cf1e3c2e5f23a6ba0ab90f4ff",
        "828684be5886a8eb10649cbf",
        "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
    ),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_three_requests_of_the_specification(case):
    first, second, third = (bytes.fromhex(block) for block in REQUESTS[case])
    decoder = HeaderDecoder()
    host = (b":authority", b"www.example.com")
    get = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), host]
    assert decoder.decode(first) == get
    assert decoder.decode(second) == [*get, (b"cache-control", b"no-cache")]
    index = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), host]
    assert decoder.decode(third) == [*index, (b"custom-key", b"custom-value")]


def test_the_table_forgets_the_oldest_entries():
    decoder = HeaderDecoder()
    for number in range(100):
        decoder.decode(b"\x40\x01a\x7e" + b"%126d" % number)
    # An entry takes its bytes and 32 more: 25 fit into 4096.
    assert decoder.decode(bytes([0x80 | 62 + 24])) == [(b"a", b"%126d" % 75)]
    with pytest.raises(CompressionError):
        decoder.decode(bytes([0x80 | 62 + 25]))
    decoder.decode(b"\x20")
    with pytest.raises(CompressionError):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize(
    "block",
    [
        "80",  # the entry 0
        "be",  # an entry that was never kept
        "ff",  # a number that is cut off
        "ffffffffff7f",  # a number that is too large
        "40",  # a literal without a name
        "400161",  # and without a value
        "40036162",  # a name that is cut off
        "8220",  # the table's size after a header
        "3fe2ff03",  # a larger table than was announced
        "0081ff00",  # a code of eight bits of padding
        "0084ffffffff00",  # the end of a text, which is never sent
    ],
)
def test_a_block_that_is_none(block):
    with pytest.raises(CompressionError):
        HeaderDecoder().decode(bytes.fromhex(block))


def test_a_list_that_is_too_large_leaves_the_table_intact():
    decoder = HeaderDecoder()
    with pytest.raises(HeadersTooLarge):
        decoder.decode(b"\x40\x01a\x01b" + b"\xbe" * MAX_LIST_BYTES)
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]


def test_text_that_is_cut_off():
    coded = bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")
    assert decode_huffman(coded) == b"www.example.com"
    with pytest.raises(InvalidCode):
        decode_huffman(coded[:-1])
