"""What a connection's header blocks mean, and which of them end it."""

import pytest

from tests.server.grpc.http2.raw import head, literal, text
from torchport.server.grpc.http2 import frames as h2
from torchport.server.grpc.http2.frames import ConnectionFault
from torchport.server.grpc.http2.header_blocks import MAX_LIST_BYTES, HeaderBlocks, HeadersTooLarge

PATH = "/a.Service/Method"
FIRST = b"\xbe"
"""The newest entry of the table."""


def kept(name: bytes, value: bytes) -> bytes:
    """A header that the table keeps."""
    return b"\x40" + text(name) + text(value)


def test_a_block_that_comes_again_is_not_decoded_again():
    blocks = HeaderBlocks()
    assert blocks.head(head(PATH)) is blocks.head(head(PATH))
    assert blocks.head(head(PATH)).path == PATH


def test_a_block_that_comes_again_means_what_the_table_says_now():
    blocks = HeaderBlocks()
    blocks.head(head(PATH) + kept(b"user", b"ada"))
    asked = head(PATH) + FIRST
    assert blocks.head(asked).metadata == [(b"user", b"ada")]
    blocks.head(head(PATH) + kept(b"user", b"bob"))
    assert blocks.head(asked).metadata == [(b"user", b"bob")]
    # A table of no bytes has no entries, even if what empties it cannot begin a call.
    blocks.head(b"\x20" + head(PATH))
    with pytest.raises(ConnectionFault) as fault:
        blocks.head(asked)
    assert fault.value.code == h2.COMPRESSION_ERROR


def test_a_block_that_changes_the_table_is_decoded_each_time():
    blocks = HeaderBlocks()
    for name in (b"ada", b"bob"):
        blocks.head(head(PATH) + kept(b"user", name))
    blocks.head(head(PATH) + kept(b"user", b"ada"))
    assert blocks.head(head(PATH) + FIRST).metadata == [(b"user", b"ada")]


@pytest.mark.parametrize(
    "block",
    [
        "80",  # the entry 0
        "be",  # an entry that was never kept
        "ff",  # a number that is cut off
        "ffffffffff7f",  # a number that is too large
        "ff" + "ff" * 30_000,  # a number without end
        "40",  # a literal without a name
        "400161",  # and without a value
        "40036162",  # a name that is cut off
        "8220",  # the table's size after a header
        "3fe2ff03",  # a larger table than was announced
        "0081ff00",  # a code of eight bits of padding
        "0084ffffffff00",  # the end of a text, which is never sent
    ],
)
def test_a_block_that_is_none_ends_the_connection(block):
    with pytest.raises(ConnectionFault) as fault:
        HeaderBlocks().head(bytes.fromhex(block))
    assert fault.value.code == h2.COMPRESSION_ERROR


def test_a_list_that_is_too_large_leaves_the_table_intact():
    blocks = HeaderBlocks()
    many = literal(b"x", b"y" * 100) * (MAX_LIST_BYTES // 133 + 1)
    with pytest.raises(HeadersTooLarge):
        blocks.head(head(PATH) + kept(b"user", b"ada") + many)
    assert blocks.head(head(PATH) + FIRST).metadata == [(b"user", b"ada")]


def test_a_short_block_that_stands_for_megabytes_ends_the_connection():
    with pytest.raises(ConnectionFault) as fault:
        HeaderBlocks().head(kept(b"x", b"y" * 126) + FIRST * 30_000)
    assert fault.value.code == h2.ENHANCE_YOUR_CALM
