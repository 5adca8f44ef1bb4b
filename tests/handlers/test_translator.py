"""The translator: strings in and out, beam search, and a model whose padding changes nothing."""

import itertools
import json

import numpy as np
import pytest

from tests.runtime.test_handler import Context
from torchport.recipe.handler import handler_class
from torchport.recipe.loading import load_recipe
from torchport.recipe.shipped import packaged_folder
from torchport_runtime import Signature, TensorSpec
from torchport_runtime.decoding import beam_search
from torchport_runtime.text import PAD, UNKNOWN, TextEncoder, pad, train_bpe
from torchport_runtime.ui_strings import SLOTS, read_pair, read_string, source_tokens

BEGIN, END, BEAM, LONGEST = 2, 3, 2, 24
STRINGS = ["open the file", "close all tabs (now)", "save as…", "l'onglet fermé", "a b c d e f", SLOTS]


class Remembers:
    """An encoder whose memory is the tokens themselves."""

    device = provider = "test"

    def __init__(self):
        self.shapes = []

    def run(self, inputs):
        tokens = inputs["tokens"]
        self.shapes.append(tokens.shape)
        memory = tokens.astype(np.float32)
        return {"memory": memory[:, :, None], "state": np.zeros((len(tokens), 1), np.float32)}


class Repeats:
    """A decoder that says the source's tokens one after another; its state is the place."""

    device = provider = "test"

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def run(self, inputs):
        place = inputs["state"][:, 0].astype(int)
        memory = inputs["memory"][:, :, 0].astype(int)
        assert (memory == inputs["tokens"]).all()
        said = memory[np.arange(len(memory)), place.clip(max=memory.shape[1] - 1)]
        logits = np.zeros((len(memory), self.vocabulary), np.float32)
        logits[np.arange(len(memory)), said] = 20
        return {"logits": logits, "new_state": inputs["state"] + 1}


@pytest.fixture
def translator(tmp_path):
    (tmp_path / "tokenizer.json").write_text(
        train_bpe(STRINGS * 2, 200, (PAD, UNKNOWN, "[BOS]", "[EOS]")), encoding="utf-8"
    )
    vocabulary = TextEncoder(tmp_path / "tokenizer.json", 9).vocab_size
    ids = {"low": 0, "high": vocabulary - 1}
    tokens = TensorSpec("int64", ("batch", "source"), **ids)
    memory = TensorSpec("float32", ("batch", "source", 1))
    state = TensorSpec("float32", ("batch", 1))
    made = handler_class(packaged_folder("handlers") / "translator.py")()
    made.signatures = {
        "encoder": Signature(
            inputs={"tokens": tokens},
            outputs={"memory": memory, "state": state},
            dims={"batch": (1, 4), "source": (1, LONGEST)},
        ),
        "decoder": Signature(
            inputs={
                "previous": TensorSpec("int64", ("batch",), **ids),
                "state": state,
                "tokens": tokens,
                "memory": memory,
            },
            outputs={"logits": TensorSpec("float32", ("batch", vocabulary)), "new_state": state},
            dims={"batch": (1, 4 * BEAM), "source": (1, LONGEST)},
        ),
    }
    made.options = {"begin": BEGIN, "end": END, "never": [0, 1, BEGIN], "beam": BEAM, "max_target": LONGEST}
    made.assets = tmp_path
    made.backends = {"encoder": Remembers(), "decoder": Repeats(vocabulary)}
    made.setup()
    return made


def ask(translator, *bodies):
    context = Context()
    answers = translator.handle([{"body": body} for body in bodies], context)
    statuses = [context.statuses.get(i, (200,))[0] for i in range(len(bodies))]
    return statuses, [json.loads(answer) for answer in answers]


def test_a_text_is_answered_as_json_with_its_placeholders_names_and_capital(translator):
    statuses, (answer,) = ask(translator, "Open the file %12 as JupyterLab…".encode())
    assert statuses == [200]
    assert answer == {"translation": "Open the file %12 as JupyterLab…", "truncated": False}


def test_several_texts_are_a_list_of_answers(translator):
    _, (listed, instances, one) = ask(
        translator, ["Save as…", "close all"], {"instances": ["open"]}, {"text": "open"}
    )
    assert [answer["translation"] for answer in listed] == ["Save as…", "close all"]
    assert [answer["translation"] for answer in instances] == ["open"]
    assert one["translation"] == "open"


def test_requests_of_different_lengths_share_a_run_and_say_what_they_say_alone(translator):
    texts = ["open", "close all tabs (now)", "save as %1 the file", "a b c d e f a b c", "%3"]
    _, together = ask(translator, *texts)
    assert len(translator.backends["encoder"].shapes) == 2  # Five rows, four at a time.
    assert together == [ask(translator, text)[1][0] for text in texts]
    assert [answer["translation"] for answer in together] == texts


def test_a_long_text_is_cut_and_says_so(translator):
    _, (long, longer) = ask(translator, "a b " * 50, "a " * 5000)
    assert long["truncated"]
    assert longer["truncated"]
    assert long["translation"].startswith("a b a b")


def test_what_never_ends_is_truncated(translator):
    translator.max_target = 2
    _, (answer,) = ask(translator, "a b c d e f")
    assert answer["truncated"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"  \n\t ", 400),
        (b"\xff\xfe", 400),
        ([], 400),
        ([1], 400),
        ({"txt": "open"}, 400),
        ({"text": None}, 400),
        (["open"] * 65, 413),
        (b"open " * 200_000, 413),
    ],
)
def test_what_is_no_text_is_refused(translator, body, status):
    statuses, answers = ask(translator, body, "open")
    assert statuses == [status, 200]
    assert answers[0]["message"]
    assert answers[1]["translation"] == "open"


@pytest.mark.parametrize(
    "text",
    [
        "open \x00\x07 the\x1b file",
        "открыть open 打开 🙂👩‍👩‍👧 the file",
        "\u202eopen\u200b",
        SLOTS + "\ue005 open",
        " ".join(f"%{i}" for i in range(30)),
        "[PAD] [EOS] open",
        "e\u0301" * 400,
        "_" * 3000,
        "{" * 3000,
        "a." * 3000,
        "💥" * 3000,
    ],
)
def test_strange_text_is_answered(translator, text):
    statuses, (answer,) = ask(translator, text.encode())
    assert statuses == [200]
    assert set(answer) == {"translation", "truncated"}


def test_words_in_other_scripts_are_carried_over(translator):
    _, (answer,) = ask(translator, "open 打开 the 🙂 file".encode())
    assert answer["translation"] == "open 打开 the 🙂 file"


def test_the_decoder_must_take_every_hypothesis_of_a_batch(translator):
    translator.options["beam"] = 3
    with pytest.raises(ValueError, match="more than the decoder's 8 rows"):
        translator.setup()


def test_strings_are_hidden_and_restored():
    string = read_string(
        "Open “%1” in JupyterLab… %1 {name} `a b` my_file notebook.json https://a.b/c?d=1, 🙂"
    )
    a, b, c, d, e, f, g, h = SLOTS[:8]
    assert string.text == f"open “{a}” in {b}… {a} {c} {d} {e} {f} {g}, {h}"
    assert string.restore(f"ouvrir {b} {a} {SLOTS[9]}") == "Ouvrir JupyterLab %1 "
    assert string.restore(f"{a} ouvert") == "%1 ouvert"
    assert read_string("open").restore("ouvrir") == "ouvrir"
    assert read_string("it\u2019s  a\ntest...").text == "it's a test…"


def test_a_pair_keeps_what_both_have():
    assert read_pair("Version %1 of GitHub", "Version : %1") == (
        "version \ue000 of github",
        "version : \ue000",
    )
    assert read_pair("%2 of %1", "%1 et %2", SLOTS[5:])[1] == "\ue006 et \ue005"
    assert read_pair("PDF viewer", "PDF à voir")[1] == "PDF à voir"


CHAIN = np.random.default_rng(3).normal(size=(5, 5)) * 2


def chain(tokens, states):
    """A language model that knows the last token only, and counts its steps in a state."""
    return CHAIN[tokens] + states["row"], {"row": states["row"]}


def brute_force(row, limit, penalty):
    def score(sequence):
        total, last = 0.0, 0
        for token in sequence:
            logits = CHAIN[last] + row
            total += logits[token] - np.log(np.exp(logits).sum())
            last = token
        return total / len(sequence) ** penalty

    ended = [(*body, 4) for n in range(limit) for body in itertools.product(range(4), repeat=n)]
    endless = list(itertools.product(range(4), repeat=limit))
    return max(ended + endless, key=score)


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_likeliest_sequence(seed):
    row = np.random.default_rng(seed).normal(size=(1, 5))
    tokens, _ = beam_search(
        chain, {"row": row}, begin=0, end=4, width=64, length_penalty=0, limit=3, forbidden=[]
    )
    best = brute_force(row[0], 3, 0)
    assert tokens[0].tolist() == [*best, *[4] * (3 - len(best))]


@pytest.mark.parametrize("width", [1, 2, 3])
def test_rows_of_a_batch_do_not_see_each_other(width):
    rows = np.random.default_rng(0).normal(size=(20, 5)) * 2
    options = {"begin": 0, "end": 4, "width": width, "limit": 9}
    tokens, ended = beam_search(chain, {"row": rows}, **options)
    for index in range(len(rows)):
        alone, alone_ended = beam_search(chain, {"row": rows[index : index + 1]}, **options)
        assert (tokens[index] == alone[0]).all()
        assert ended[index] == alone_ended[0]
    assert ended.any()
    assert not ended.all()


def test_forbidden_tokens_do_not_come_out():
    tokens, _ = beam_search(
        chain, {"row": np.zeros((3, 5))}, begin=0, end=4, width=2, limit=8, forbidden=[0, 2]
    )
    assert not np.isin(tokens, [0, 2]).any()


@pytest.mark.parametrize("wrong", [{"width": 0}, {"limit": 0}, {"states": {}}])
def test_a_search_without_rows_width_or_limit_is_refused(wrong):
    states = wrong.pop("states", {"row": np.zeros((1, 5))})
    with pytest.raises(ValueError, match="at least 1 of each"):
        beam_search(chain, states, begin=0, end=4, **wrong)


def test_padding_changes_nothing_and_a_step_is_a_step_of_training():
    import torch

    torch.manual_seed(0)
    recipe = load_recipe("translate_en_fr")
    model = recipe.build().eval()
    encoder, decoder = (recipe.graphs(model)[name] for name in ("encoder", "decoder"))
    draw = np.random.default_rng(0)
    rows = [draw.integers(4, 1000, n) for n in (3, 1, 9)]
    tokens = torch.from_numpy(pad(rows)[0])
    with torch.no_grad():
        memory, state = encoder(tokens)
        logits, new = decoder(tokens[:, 0], state, tokens, memory)
        for index, row in enumerate(rows):
            alone = torch.from_numpy(row)[None]
            own_memory, own_state = encoder(alone)
            assert torch.allclose(memory[index, : len(row)], own_memory[0], atol=1e-5)
            own_logits, own_new = decoder(alone[:, 0], own_state, alone, own_memory)
            assert torch.allclose(logits[index], own_logits[0], atol=1e-4)
            assert torch.allclose(new[index], own_new[0], atol=1e-5)
        first = model.lower(
            model.embedding(tokens[:, :1]), state[None, :, : state.shape[1] // 2].contiguous()
        )[0]
        assert torch.allclose(first[:, 0], new[:, : new.shape[1] // 2], atol=1e-5)


def test_source_tokens_end_and_say_whether_they_were_cut(translator):
    _, tokens, cut = source_tokens(translator.encoder, "open the file", END)
    assert tokens[-1] == END
    assert not cut
    _, tokens, cut = source_tokens(translator.encoder, "a b c d " * 50, END)
    assert len(tokens) == LONGEST
    assert cut
