"""The network of `translate_en_fr`, and the dictionary that it starts from.

model = Translator()
memory, state = Encoder(model)(tokens)                                # once per string
logits, state = DecoderStep(model)(previous, state, tokens, memory)   # once per token of its translation
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from torchport_runtime.text import PAD, UNKNOWN

VOCABULARY, EMBEDDING, HIDDEN = 1200, 128, 192
LABEL_SMOOTHING, ALIGNMENT_WEIGHT, DROPOUT, WORD_DROPOUT = 0.1, 0.3, 0.2, 0.05
SPECIAL = (PAD, UNKNOWN, "[BOS]", "[EOS]")
BEGIN, END = 2, 3


class Translator(nn.Module):
    """Encoder-decoder with attention: bidirectional GRU, then two GRU layers.

    The attention on the encoder is between the two layers of the decoder.
    """

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, EMBEDDING, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=EMBEDDING**-0.5)
        self.forwards = nn.GRU(EMBEDDING, HIDDEN // 2, batch_first=True)
        self.backwards = nn.GRU(EMBEDDING, HIDDEN // 2, batch_first=True)
        self.initial = nn.Linear(HIDDEN, HIDDEN)
        self.key = nn.Linear(HIDDEN + EMBEDDING, HIDDEN)
        self.lower = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
        self.query = nn.Linear(HIDDEN, HIDDEN)
        self.upper = nn.GRU(2 * HIDDEN, HIDDEN, batch_first=True)
        self.out = nn.Linear(3 * HIDDEN, EMBEDDING)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))
        self.lexical = nn.Linear(EMBEDDING, EMBEDDING)
        self.lexical_out = nn.Linear(EMBEDDING, VOCABULARY)
        self.dropout = nn.Dropout(DROPOUT)
        self.register_buffer("dictionary", torch.zeros(VOCABULARY, VOCABULARY))
        self.trust = nn.Parameter(torch.tensor(0.5))

    def drop_words(self, tokens):
        if not self.training:
            return tokens
        dropped = (torch.rand(tokens.shape) < WORD_DROPOUT).to(tokens.device) & (tokens >= len(SPECIAL))
        return tokens.masked_fill(dropped, 1)

    def encode(self, tokens):
        """Encode tokens [batch, source], padded with 0.

        Returns memory [batch, source, E + 2 H] and state [batch, 2 H].
        """
        mask = tokens > 0
        lengths = mask.sum(1, keepdim=True).clamp(min=1)
        embedded = self.dropout(self.embedding(self.drop_words(tokens)))
        left, _ = self.forwards(embedded)
        # Each row is turned round within its own length, so that padding comes last for both directions.
        turned = (lengths - 1 - torch.arange(tokens.shape[1], device=tokens.device)).clamp(min=0)[:, :, None]
        right, _ = self.backwards(embedded.gather(1, turned.expand(-1, -1, EMBEDDING)))
        right = right.gather(1, turned.expand(-1, -1, HIDDEN // 2))
        hidden = self.dropout(torch.cat([left, right], 2))
        mean = (hidden * mask[:, :, None]).sum(1) / lengths
        state = torch.tanh(self.initial(mean))
        keys = self.key(torch.cat([hidden, embedded], 2))
        return torch.cat([embedded, hidden, keys], 2), torch.cat([state, state], 1)

    def attend(self, lower, tokens, memory):
        """Log attention [batch, target, source], and context of each lower output."""
        _, hidden, keys = memory.split([EMBEDDING, HIDDEN, HIDDEN], 2)
        scores = self.query(lower) @ keys.transpose(1, 2) / HIDDEN**0.5
        scores = scores.masked_fill((tokens == 0)[:, None], -1e9)
        return scores.log_softmax(2), scores.softmax(2) @ hidden

    def predict(self, lower, context, upper, attention, tokens, memory):
        """Logits [batch, target, vocabulary]."""
        features = self.dropout(torch.cat([lower, context, upper], 2))
        features = self.dropout(torch.tanh(self.out(features)))
        logits = features @ self.embedding.weight.T + self.bias
        # The attended word's own translations, learned (Nguyen and Chiang, 2018) and from the dictionary.
        word = torch.tanh(attention @ memory[:, :, :EMBEDDING])
        logits = logits + self.lexical_out(self.dropout(torch.tanh(self.lexical(word)) + word))
        return logits + self.trust * (attention @ self.dictionary[tokens] + 1e-3).log()

    def loss(self, tokens, target):
        """Loss of a target [batch, 1 + target], from BEGIN to END."""
        memory, state = self.encode(tokens)
        first = state[None, :, :HIDDEN].contiguous()
        lower, _ = self.lower(self.dropout(self.embedding(self.drop_words(target[:, :-1]))), first)
        log_attention, context = self.attend(lower, tokens, memory)
        upper, _ = self.upper(self.dropout(torch.cat([lower, context], 2)), first)
        logits = self.predict(lower, context, upper, log_attention.exp(), tokens, memory)
        following = target[:, 1:]
        loss = F.cross_entropy(
            logits.flatten(0, 1), following.flatten(), ignore_index=0, label_smoothing=LABEL_SMOOTHING
        )
        wanted = following[:, None].expand(-1, tokens.shape[1], -1)
        aligned = self.dictionary[tokens].gather(2, wanted).transpose(1, 2)
        aligned = aligned / (aligned.sum(2, keepdim=True) + 0.01) * (following > 0)[:, :, None]
        return loss - ALIGNMENT_WEIGHT * (aligned * log_attention).sum() / aligned.sum().clamp(min=1)


def gru_step(layer: nn.GRU, x, state):
    """One step of a GRU layer on [batch, features]."""
    from_x = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0).chunk(3, 1)
    from_state = F.linear(state, layer.weight_hh_l0, layer.bias_hh_l0).chunk(3, 1)
    reset, keep = (torch.sigmoid(a + b) for a, b in zip(from_x[:2], from_state[:2], strict=True))
    return (1 - keep) * torch.tanh(from_x[2] + reset * from_state[2]) + keep * state


class Encoder(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model.encode(tokens)


class DecoderStep(nn.Module):
    """Decodes one more token."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, previous, state, tokens, memory):
        lower, upper = state.chunk(2, 1)
        lower = gru_step(self.model.lower, self.model.embedding(previous), lower)
        log_attention, context = self.model.attend(lower[:, None], tokens, memory)
        upper = gru_step(self.model.upper, torch.cat([lower, context[:, 0]], 1), upper)
        logits = self.model.predict(
            lower[:, None], context, upper[:, None], log_attention.exp(), tokens, memory
        )
        return logits[:, 0], torch.cat([lower, upper], 1)


def align(examples: list[tuple[np.ndarray, np.ndarray]], rounds: int = 6) -> torch.Tensor:
    """Probabilities that a token is translated by another, [vocabulary, vocabulary].

    They are those of IBM model 1, found by expectation maximisation. Token 0 stands for the empty word;
    END translates itself.
    """
    sources = [np.append(0, source[:-1]) for source, _ in examples]
    targets = [target[1:-1] for _, target in examples]
    source = np.concatenate([np.tile(s, len(t)) for s, t in zip(sources, targets, strict=True)])
    target = np.concatenate([np.repeat(t, len(s)) for s, t in zip(sources, targets, strict=True)])
    widths = np.repeat([len(s) for s in sources], [len(t) for t in targets])
    place = np.repeat(np.arange(len(widths)), widths)  # Which target token of the corpus a pair is about.
    cell = source * VOCABULARY + target
    table = np.ones(VOCABULARY**2)
    for _ in range(rounds):
        share = table[cell]
        share /= np.bincount(place, share)[place]
        counts = np.bincount(cell, share, VOCABULARY**2).reshape(VOCABULARY, VOCABULARY)
        # Half a count more, so that a word seen once does not seem to be sure of its translation.
        table = (counts / (counts.sum(1, keepdims=True) + 0.5)).ravel()
    table = table.reshape(VOCABULARY, VOCABULARY)
    table[0], table[END, END] = 0, 1
    return torch.from_numpy(table.astype(np.float32))
