"""Texts of requests, sub-words, and the text classifier that runs on them."""

import json
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.test_handler import Context
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import load_recipe
from torchport.recipe.shipped import packaged_folder
from torchport_runtime import (
    BackendError,
    BackendOptions,
    BadRequest,
    InferenceRequest,
    Signature,
    TensorSpec,
)
from torchport_runtime.backends.backend import open_backend
from torchport_runtime.text import PAD, UNKNOWN, TextEncoder, clean_text, decode_texts, pad, train_bpe

pytest.importorskip("tokenizers")

SENTENCES = [
    "a gem of a film",
    "a bore of a film",
    "great, warm and funny",
    "dull; cold and long",
    "café",
] * 3
TOKENIZER = train_bpe(SENTENCES, 100, lowercase=True)
ENCODER = TextEncoder.from_json(TOKENIZER, 8)


def texts(body, **limits):
    return decode_texts(InferenceRequest({"body": body}), **limits)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"A gem.", ["A gem."]),
        (bytearray("Caf\u00e9 \U0001f44f\n".encode()), ["Caf\u00e9 \U0001f44f"]),
        (b"\xef\xbb\xbfwith a byte order mark", ["with a byte order mark"]),
        ("A gem.", ["A gem."]),
        ({"text": "A gem."}, ["A gem."]),
        (b' {"text": "A gem."}', ["A gem."]),
        (b'"quoted"', ['"quoted"']),
        (b"[sic] {no} JSON", ["[sic] {no} JSON"]),
        (b'{"stars": 5}', ['{"stars": 5}']),
        (["a", "b"], ["a", "b"]),
        (b'["a", "b"]', ["a", "b"]),
        ({"instances": ["a", {"text": "b"}]}, ["a", "b"]),
    ],
)
def test_texts_in_every_form(body, found):
    request = InferenceRequest({"body": body})
    assert decode_texts(request) == found
    assert request.batched == (len(found) > 1)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"ab\xff", "byte 2 is 0xff"),
        ("  \n", "only white space"),
        ("\x00\x00", "only white space"),
        (["a", " "], "text 1 is empty"),
        ("\ud800", r"character 0 is \ud800"),
        (["a", "b\udfff"], r"text 1: character 1 is \udfff"),
        (5, "a number"),
        ([None], "item 0 of the list is null"),
        ({"text": 5}, "'text' is a number"),
        ({"text": ["a"]}, "'text' is a list"),
        ({"instances": "a"}, "'instances' is"),
        ({"txt": "a"}, "'txt'"),
        ({"text": "a", "k": 2}, "'k'"),
        ([], "an empty list"),
        (None, "no body"),
    ],
)
def test_what_is_no_text_is_refused_with_a_reason(body, reason):
    with pytest.raises(BadRequest) as caught:
        texts(body)
    assert caught.value.http_status == 400
    assert reason in str(caught.value)


@pytest.mark.parametrize("body", [b"a" * 11, "a" * 11, "\u00e9" * 6, ["a" * 6, "b" * 5], ["a"] * 4])
def test_too_much_text_is_413(body):
    with pytest.raises(BadRequest) as caught:
        texts(body, limit_bytes=10, limit_texts=3)
    assert caught.value.http_status == 413


def test_control_characters_become_spaces_and_accents_are_composed():
    assert clean_text("a\x00b\x1f\tc\x85\n") == "a b \tc"
    assert clean_text("e\u0301") == "\u00e9"


def test_a_long_run_of_marks_takes_no_quadratic_time():
    """Composing 32,000 marks in the wrong order takes a second; they are cut to 32 first."""
    assert len(clean_text("a" + "\u0301\u0316" * 16000)) <= 33
    fine = "\u0915\u094d\u0937" * 100
    assert clean_text(fine) == unicodedata.normalize("NFC", fine)


@given(st.text(min_size=1))
def test_any_text_is_read_or_refused_and_has_a_token(text):
    try:
        (cleaned,) = texts(text)
    except BadRequest:
        return
    ids, truncated = ENCODER.encode(cleaned)
    assert ids.dtype == np.int64
    assert 1 <= len(ids) <= 8
    assert ids.min() > 0
    assert ids.max() < ENCODER.vocab_size
    assert len(ENCODER.pieces(cleaned)) == len(ids)


def test_special_tokens_stand_first_and_cannot_be_typed():
    assert (ENCODER.id_of(PAD), ENCODER.id_of(UNKNOWN)) == (0, 1)
    assert 0 not in ENCODER.encode(PAD)[0]


def test_an_unknown_script_is_unknown_tokens():
    ids, _ = ENCODER.encode("\u5091\u4f5c")
    assert 1 in ids
    assert ENCODER.pieces("\u5091\u4f5c gem")[:2] == ["\u2581", "\u5091\u4f5c"]


def test_a_long_text_is_cut_and_says_so():
    assert ENCODER.encode("a gem")[1] is False
    ids, truncated = ENCODER.encode("gem " * 9)
    assert (len(ids), truncated) == (8, True)


def test_decoding_gives_the_text_back():
    encoder = TextEncoder.from_json(train_bpe(SENTENCES, 100), 99)
    for text in ("a gem of a film", "great, warm and funny", "caf\u00e9; cold"):
        assert encoder.decode(encoder.encode(text)[0]) == text


def test_training_a_tokenizer_is_deterministic_and_fills_the_vocabulary():
    assert train_bpe(SENTENCES, 40) == train_bpe(SENTENCES, 40)
    assert TextEncoder.from_json(train_bpe(SENTENCES, 40), 9).vocab_size == 40
    with pytest.raises(ValueError, match="UNK"):
        train_bpe(SENTENCES, 40, [PAD])


def test_padding():
    tokens, mask = pad([np.array([5, 6, 7]), np.array([8])])
    assert tokens.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    assert (tokens.dtype, mask.dtype) == (np.int64, np.bool_)


def test_a_file_that_is_no_tokenizer_and_a_missing_library_are_said_so(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    for name in ("tokenizer.json", "missing.json"):
        with pytest.raises(BackendError, match="no tokenizer"):
            TextEncoder(tmp_path / name, 8)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(BackendError, match="pip install tokenizers"):
        TextEncoder.from_json(TOKENIZER, 8)


class Lookup:
    """Vectors that hold the token's id, and whether it is praise or blame."""

    device = provider = "test"
    signs = {"gem": 1.0, "bore": -1.0}

    def run(self, inputs):
        tokens = inputs["tokens"]
        signs = np.zeros(tokens.shape, np.float32)
        for word, sign in self.signs.items():
            signs[tokens == ENCODER.encode(word)[0][-1]] = sign
        return {"vectors": np.stack([tokens.astype(np.float32), signs, signs], -1)}


class Sums:
    """Logits from the sum of the signs."""

    device = provider = "test"

    def __init__(self):
        self.shapes = []

    def run(self, inputs):
        self.shapes.append(inputs["mask"].shape)
        sums = (inputs["vectors"][..., 1] * inputs["mask"]).sum(1)
        return {"logits": np.stack([-sums, sums], 1)}


@pytest.fixture
def classifier(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER, encoding="utf-8")
    dims = {"batch": (1, 4), "time": (1, 8)}
    vectors = {"vectors": TensorSpec("float32", ("batch", "time", 3))}
    tokens = TensorSpec("int64", ("batch", "time"), low=0, high=ENCODER.vocab_size - 1)
    made = handler_class(packaged_folder("handlers") / "text_classifier.py")()
    made.signatures = {
        "embedding": Signature(inputs={"tokens": tokens}, outputs=vectors, dims=dims),
        "main": Signature(
            inputs={**vectors, "mask": TensorSpec("bool", ("batch", "time"))},
            outputs={"logits": TensorSpec("float32", ("batch", 2))},
            dims=dims,
        ),
    }
    made.options, made.assets = {"labels": ["negative", "positive"]}, tmp_path
    made.setup()
    made.backends = {"embedding": Lookup(), "main": Sums()}
    return made


def ask(made, *bodies, headers=None):
    context = Context(headers)
    answers = [json.loads(answer) for answer in made.handle([{"body": body} for body in bodies], context)]
    return answers, context.statuses


def test_texts_of_different_lengths_share_a_run_and_get_their_own_answers(classifier):
    answers, statuses = ask(classifier, b"a gem of a film", ["bore", "gem gem"], {"text": "gem " * 9})
    assert statuses == {}
    assert answers[0] == {
        "label": "positive",
        "probability": pytest.approx(0.881, abs=1e-3),
        "truncated": False,
    }
    assert [one["label"] for one in answers[1]] == ["negative", "positive"]
    assert answers[2]["truncated"] is True
    assert len(classifier.backends["main"].shapes) == 1


def test_more_texts_than_the_batch_allows(classifier):
    (answer,), _ = ask(classifier, ["gem", "bore"] * 5)
    assert [one["label"] for one in answer] == ["positive", "negative"] * 5
    assert len(classifier.backends["main"].shapes) == 3


def test_a_bad_text_hurts_no_other(classifier):
    answers, statuses = ask(classifier, "gem", b"\xff", " ", "x" * 70000, "\ud800", "bore")
    assert {index: status for index, (status, _) in statuses.items()} == {1: 400, 2: 400, 3: 413, 4: 400}
    assert [answers[0]["label"], answers[5]["label"]] == ["positive", "negative"]


def test_explanations_are_for_backends_with_gradients(classifier):
    (answer,), statuses = ask(classifier, "gem", headers={"explain": "True"})
    assert statuses[0][0] == 400
    assert "torchscript" in answer["message"]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_an_explanation_says_which_token_spoke_for_the_label(classifier, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("captum")

    class Model(torch.nn.Module):
        def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            sums = (vectors[:, :, 1] * mask).sum(1)
            return torch.stack([-sums, sums], 1)

    signature = classifier.signatures["main"]
    example = tuple(torch.from_numpy(array) for array in signature.zeros({"batch": 2, "time": 5}).values())
    torch.jit.trace(Model().eval(), example).save(str(tmp_path / "main.pt"))
    options = BackendOptions(backend="torchscript", device="cpu")
    classifier.backends["main"] = open_backend(tmp_path / "main.pt", signature, options)
    answers, statuses = ask(classifier, "of a bore", ["gem", "bore"], headers={"explain": "True"})
    assert answers[0]["label"] == "negative"
    assert [piece for piece, _ in answers[0]["tokens"]] == ENCODER.pieces("of a bore")
    assert [share for _, share in answers[0]["tokens"]][-1] == pytest.approx(1, abs=1e-4)
    assert sum(share for _, share in answers[0]["tokens"]) == pytest.approx(1, abs=1e-4)
    assert abs(answers[0]["delta"]) < 1e-4
    assert statuses == {1: (400, "Bad Request")}
    assert "one is explained at a time" in answers[1]["message"]


def test_padding_changes_no_answer_of_the_sentiment_model():
    torch = pytest.importorskip("torch")
    recipe = load_recipe("sentiment")
    torch.manual_seed(0)
    model = recipe.build().eval()
    rows = [torch.randint(1, 4000, (length,)).numpy() for length in (1, 2, 7, 40)]
    together = torch.from_numpy(pad(rows)[0])
    with torch.no_grad():
        alone = torch.cat([model(torch.from_numpy(row[None])) for row in rows])
        # Float32 sums of other lengths round differently in the seventh digit.
        torch.testing.assert_close(model(together), alone, rtol=1e-5, atol=1e-6)
        wide = torch.nn.functional.pad(together, (0, 60))
        torch.testing.assert_close(model(wide), alone, rtol=1e-5, atol=1e-6)
        assert model(torch.zeros((2, 3), dtype=torch.int64)).isfinite().all()
    # And the order of words counts.
    turned = torch.from_numpy(rows[3][None, ::-1].copy())
    assert not torch.allclose(model(turned), alone[3:], atol=1e-4)
