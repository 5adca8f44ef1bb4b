"""Reads a request's texts, and encodes texts as sub-word ids.

Training, parity and handlers call the same code.

    encoder = TextEncoder(Path("assets/tokenizer.json"), max_tokens=128)
    ids, truncated = encoder.encode("A gem.")          # int64 [4], False
    tokens, mask = pad([ids, encoder.encode("No.")[0]])  # int64 [2, 4], bool [2, 4]

A tokenizer is Hugging Face's JSON, which `train_bpe` makes. Only numpy is imported here; the package
`tokenizers` is imported where it is used.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchport_runtime.errors import BackendError, BadRequest
from torchport_runtime.requests.instances import only_instances
from torchport_runtime.requests.request import InferenceRequest

if TYPE_CHECKING:
    from tokenizers import Encoding

PAD, UNKNOWN = "[PAD]", "[UNK]"
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_COMBINING_RUN = 32
_SHAPES = 'text, a JSON string, {"text": "..."}, a list of strings, or {"instances": [strings]}'


def decode_texts(request: InferenceRequest, *, limit_bytes: int = 65536, limit_texts: int = 64) -> list[str]:
    """One request's texts, cleaned by `clean_text`.

    Takes UTF-8 bytes, a JSON string, `{"text": "..."}`: one text. A JSON list of strings and
    `{"instances": [...]}` are several, and set `request.batched`. Bytes that are a JSON object
    with "text" or "instances", or a JSON list of strings, are read as JSON, though the client
    did not say so.

    Raises:
        BadRequest: not UTF-8, no text, only white space, an empty list; status 413 where the texts
            have more than `limit_bytes` bytes together, or are more than `limit_texts`.
    """
    body = request.body
    if isinstance(body, bytes):
        _refuse_long(len(body), limit_bytes)
        body = _as_json(_utf8(body))
    if isinstance(body, Mapping):
        body = _of_object(only_instances(request, body))
    request.batched = isinstance(body, list)
    texts = body if isinstance(body, list) else [body]
    if not texts:
        raise BadRequest("an empty list: at least one text is expected")
    if len(texts) > limit_texts:
        raise BadRequest(f"{len(texts)} texts: send at most {limit_texts} at a time", status=413)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            where = f"item {index} of the list is" if request.batched else "the body is"
            raise BadRequest(f"{where} {_json_type(text)}: send {_SHAPES}")
    _refuse_long(sum(map(len, texts)), limit_bytes)  # Before the work of counting their bytes.
    encoded = [_checked(text, index, request.batched) for index, text in enumerate(texts)]
    _refuse_long(sum(encoded), limit_bytes)
    cleaned = [clean_text(text) for text in texts]
    for index, text in enumerate(cleaned):
        if not text:
            where = f"text {index}" if request.batched else "the text"
            raise BadRequest(f"{where} is empty, or only white space: send at least one character")
    return cleaned


def clean_text(text: str) -> str:
    """The text in Unicode's composed form (NFC), without white space around it.

    Control characters such as NUL, except tab and line ends, become spaces. A byte order mark at the start
    is dropped. A run of combining marks keeps its first 32 (Unicode's stream-safe format, UAX 15, allows
    30), because composing takes time by the square of such a run.
    """
    text = _CONTROLS.sub(" ", text.removeprefix("\ufeff"))
    if not text.isascii():
        text = unicodedata.normalize("NFC", _without_long_runs(text))
    return text.strip()


class TextEncoder:
    """A tokenizer from the archive's assets.

    Args:
        path: the tokenizer's JSON, of `train_bpe` or of Hugging Face's library.
        max_tokens: maximum number of tokens; longer texts are cut.

    Raises:
        BackendError: the package `tokenizers` is missing, or cannot read the file.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._load(Path(path).read_text(encoding="utf-8"), max_tokens)
        except (OSError, ValueError) as err:
            raise BackendError(f"{path} is no tokenizer: {err}") from err

    @classmethod
    def from_json(cls, tokenizer: str, max_tokens: int) -> TextEncoder:
        """Make an encoder from a tokenizer's JSON, as `train_bpe` gives it.

        Raises:
            ValueError: the text is not a tokenizer's JSON.
        """
        encoder = cls.__new__(cls)
        encoder._load(tokenizer, max_tokens)
        return encoder

    def _load(self, tokenizer: str, max_tokens: int) -> None:
        library = _tokenizers()
        try:
            self._tokenizer = library.Tokenizer.from_str(tokenizer)
        except Exception as err:  # The library raises plain Exception for whatever it cannot use.
            raise ValueError(str(err)) from err
        # The six characters "[PAD]" in a client's text are text, not padding.
        self._tokenizer.encode_special_tokens = True
        self.max_tokens = max_tokens

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def id_of(self, token: str) -> int:
        """The id of one token, such as "[EOS]".

        Raises:
            BackendError: the token is not in the vocabulary.
        """
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise BackendError(f"the tokenizer has no token {token!r}")
        return int(found)

    def encode(self, text: str) -> tuple[np.ndarray, bool]:
        """Token ids, int64 [n], and whether the text was cut to `max_tokens`.

        There is at least one id.
        """
        ids = self._encoding(text).ids or [self.id_of(UNKNOWN)]
        return np.array(ids[: self.max_tokens], dtype=np.int64), len(ids) > self.max_tokens

    def pieces(self, text: str) -> list[str]:
        """The text of each of `encode`'s ids; "▁" for a space alone."""
        encoding = self._encoding(text)
        found = zip(encoding.tokens, encoding.offsets, strict=True)
        pieces = [token if token == "▁" else text[start:end].strip() for token, (start, end) in found]
        return pieces[: self.max_tokens] or [text]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids; special tokens are left out."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)).strip()

    def _encoding(self, text: str) -> Encoding:
        encoding: Encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return encoding


def pad(rows: Sequence[np.ndarray], value: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pad id sequences [n] to tokens int64 [rows, longest], with a mask.

    The mask is bool of the same shape, true for each token.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max())[None] < lengths[:, None]
    tokens = np.full(mask.shape, value, dtype=np.int64)
    tokens[mask] = np.concatenate(rows)
    return tokens, mask


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    special_tokens: Sequence[str] = (PAD, UNKNOWN),
    *,
    lowercase: bool = False,
    min_frequency: int = 2,
) -> str:
    """Learn a byte-pair encoding from `texts`, as a tokenizer's JSON.

    The method is that of Sennrich et al., 2016.

    Words carry a leading "▁" in place of the space before them and punctuation stands alone, so
    that `TextEncoder.decode` gives the text back, except runs of white space. The special
    tokens take the first ids, in order; characters that `texts` lack become `[UNK]`, which must be
    one of them.

    Raises:
        BackendError: the package `tokenizers` is missing.
        ValueError: no `[UNK]` among the special tokens.
    """
    if UNKNOWN not in special_tokens:
        raise ValueError(f"special_tokens {list(special_tokens)}: {UNKNOWN!r} is to be one of them")
    t = _tokenizers()
    tokenizer = t.Tokenizer(t.models.BPE(unk_token=UNKNOWN, fuse_unk=True))
    tidy = [t.normalizers.NFC(), t.normalizers.Replace(t.Regex(r"\s+"), " "), t.normalizers.Strip()]
    tokenizer.normalizer = t.normalizers.Sequence([*tidy, *([t.normalizers.Lowercase()] * lowercase)])
    tokenizer.pre_tokenizer = t.pre_tokenizers.Sequence(
        [t.pre_tokenizers.Metaspace(), t.pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = t.decoders.Metaspace()
    trainer = t.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special_tokens),
        min_frequency=min_frequency,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def _utf8(body: bytes) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as err:
        raise BadRequest(
            f"the body is not UTF-8: byte {err.start} is 0x{body[err.start]:02x} ({err.reason}); "
            "save the text as UTF-8"
        ) from err


def _as_json(text: str) -> Any:
    """The text's JSON if it is a request's, else the text."""
    start = text.lstrip("\ufeff \t\r\n")[:1]
    if start not in ("{", "["):
        return text
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError):
        return text
    if isinstance(value, dict):
        return value if {"text", "instances"} & set(value) else text
    return value if value and all(isinstance(item, str) for item in value) else text


def _of_object(body: Mapping[str, Any]) -> Any:
    if len(body) != 1 or not {"text", "instances"} & set(body):
        given = ", ".join(repr(str(key)) for key in body)[:80] or "nothing"
        raise BadRequest(f"an object with {given}: send {_SHAPES}")
    if "text" in body:
        if not isinstance(body["text"], str):
            raise BadRequest(f"'text' is {_json_type(body['text'])}: a string is expected")
        return body["text"]
    if not isinstance(body["instances"], list):
        raise BadRequest(f"'instances' is {_json_type(body['instances'])}: a list of strings is expected")
    # An item may be written as the body of one text is.
    return [
        item["text"] if isinstance(item, Mapping) and set(item) == {"text"} else item
        for item in body["instances"]
    ]


def _checked(text: str, index: int, batched: bool) -> int:
    """The text's length in UTF-8 bytes; half a surrogate pair is refused."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as err:
        where = f"text {index}" if batched else "the text"
        raise BadRequest(
            f"{where}: character {err.start} is \\u{ord(text[err.start]):04x}, half a surrogate pair: "
            "send whole characters"
        ) from err


def _refuse_long(count: int, limit: int) -> None:
    if count > limit:
        raise BadRequest(f"{count:,} bytes of text: send at most {limit:,} at a time", status=413)


def _without_long_runs(text: str) -> str:
    kept, run = [], 0
    for character in text:
        run = run + 1 if unicodedata.combining(character) else 0
        if run <= _COMBINING_RUN:
            kept.append(character)
    return "".join(kept)


def _json_type(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _tokenizers() -> Any:
    try:
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers  # noqa: F401
    except ImportError as err:
        raise BackendError("texts need the package tokenizers: pip install tokenizers") from err
    return tokenizers
