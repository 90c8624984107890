"""Heads for work: words, pictures and sound in, classes and words out; each beside a plain computation."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch import nn as theirs
from torch.nn import functional as F

from regard import ShapeError, Unsupported, nn
from regard.masks import causal, documents, full, padding, prefix, window
from regard.nn.audio import mel_bands

WORDS, DIM = 11, 16
LENGTHS = [7, 4, 1]
TOKENS = torch.randint(1, WORDS, (3, 7), generator=torch.Generator().manual_seed(0))
PADDING = padding(LENGTHS)
KEEP = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
WIDE: dict[str, Any] = {"dtype": torch.float64}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def waves(n: int) -> Tensor:
    """The sinusoidal positions, column by column."""
    columns = [f(p / 10_000 ** (2 * c / DIM)) for p in range(n) for c in range(DIM // 2) for f in (math.sin, math.cos)]
    return torch.tensor(columns, dtype=torch.float64).view(n, DIM)


def pytorchs(encoder: nn.Encoder, hidden: int = 4 * DIM, **options: Any) -> theirs.TransformerEncoder:
    """PyTorch's encoder with the weights of ours."""
    layer = theirs.TransformerEncoderLayer(DIM, 2, hidden, dropout=0.0, batch_first=True, **options, **WIDE)
    norm = None if encoder.norm is None else theirs.LayerNorm(DIM, **WIDE)
    made = theirs.TransformerEncoder(layer, len(encoder.layers), norm, enable_nested_tensor=False)
    made.load_state_dict({name: t for name, t in encoder.state_dict().items() if not name.startswith("position")})
    return made


def weights(stack: theirs.TransformerEncoder, x: Tensor, hidden: Tensor | None = None) -> list[Tensor]:
    """PyTorch's weights, layer by layer, (batch, heads, n, n)."""
    found = []
    for layer in stack.layers:
        given = layer.norm1(x) if layer.norm_first else x
        found.append(layer.self_attn(given, given, given, hidden, average_attn_weights=False)[1])
        x = layer(x, src_key_padding_mask=hidden)
    return found


def same(found: Any, due: Tensor, atol: float = 1e-6) -> None:
    """In float64, beside sines and cosines, which are taken in float32."""
    torch.testing.assert_close(found, due, rtol=0, atol=atol)


def text(**options: Any) -> nn.TextEncoder:
    return nn.TextEncoder(WORDS, DIM, 2, 2, **{"position": nn.sinusoidal(), **options, **WIDE})


def sound(**options: Any) -> nn.AudioEncoder:
    return nn.AudioEncoder(6, DIM, 2, 2, position=nn.rotary(), **options, **WIDE)


# -- from words to embeddings -----------------------------------------------------------------------------------------


def test_an_embedding_is_a_scaled_row_of_its_table():
    words = nn.TokenEmbedding(WORDS, DIM, **WIDE)
    same(words(TOKENS), words.weight[TOKENS] * 4)
    same(words.logits(words(TOKENS)), words(TOKENS) @ words.weight.T)
    large = nn.TokenEmbedding(500, 64)
    assert 0.95 < float(large(torch.arange(500)[None]).detach().std()) < 1.05  # as large as the waves


def test_a_text_encoder_is_pytorchs_behind_an_embedding():
    model = text()
    y, attentions = model(TOKENS, mask=PADDING, return_attention=True)
    plain, x = pytorchs(model.encoder), model.embedding.weight[TOKENS] * math.sqrt(DIM) + waves(7)
    same(y[KEEP], plain(x, src_key_padding_mask=~KEEP)[KEEP])
    for A, W in zip(attentions, weights(plain, x, ~KEEP), strict=True):
        same(A.to_dense(), W)
    same(model(TOKENS, mask=PADDING), y)


@pytest.mark.parametrize("position", [nn.sinusoidal(), nn.rotary(), nn.alibi(2), None], ids=str)
def test_padding_is_not_there(position):
    model = text(position=position)
    y = model(TOKENS, mask=PADDING)
    other = TOKENS.where(KEEP, 0)
    same(model(other, mask=PADDING)[KEEP], y[KEEP])
    for row, length in enumerate(LENGTHS):
        same(model(TOKENS[row : row + 1, :length])[0], y[row, :length])


# -- classes ----------------------------------------------------------------------------------------------------------


def test_a_class_for_each_token_is_a_linear_map():
    model = nn.TokenClassifier(text(), DIM, 5, dropout=0.5, **WIDE).eval()
    logits, attentions = model(TOKENS, mask=PADDING, return_attention=True)
    same(logits, model.body(TOKENS, mask=PADDING) @ model.output.weight.T + model.output.bias)
    assert logits.shape == (3, 7, 5)
    assert [A.shape for A in attentions] == [(3, 2, 7, 7)] * 2
    same(model(TOKENS, mask=PADDING), logits)
    assert not torch.equal(model.train()(TOKENS, mask=PADDING), logits)  # dropout


def pooled(how: str, y: Tensor, query: Tensor | None) -> Tensor:
    """Row by row, as one would do it by hand."""
    if how == "first":
        return y[:, 0]
    rows = [y[row, :length] for row, length in enumerate(LENGTHS)]
    if how == "mean" or query is None:
        return torch.stack([row.mean(0) for row in rows])
    return torch.stack([torch.softmax(row @ query / math.sqrt(DIM), 0) @ row for row in rows])


@pytest.mark.parametrize("pool", ["first", "mean", "attention"])
def test_a_class_for_a_sequence_comes_from_the_tokens_that_there_are(pool):
    model = nn.SequenceClassifier(text(), DIM, 5, pool, **WIDE)
    query = None
    if pool == "attention":
        theirs.init.normal_(model.pool.query, std=3)
        query = model.pool.query.detach().flatten()
    logits, attentions = model(TOKENS, mask=PADDING, return_attention=True)
    due = pooled(pool, model.body(TOKENS, mask=PADDING), query)
    same(logits, due @ model.output.weight.T + model.output.bias)
    same(model(TOKENS, mask=PADDING), logits)
    assert (attentions.pool is None) == (pool != "attention")
    for row, length in enumerate(LENGTHS):
        same(model(TOKENS[row : row + 1, :length]), logits[row : row + 1])


def test_a_pool_may_be_a_module_of_ones_own():
    class Last(theirs.Module):
        def forward(self, x: Tensor, *, mask: Any) -> Tensor:
            return x[:, -1]

    model = nn.SequenceClassifier(text(), DIM, 2, Last(), **WIDE)
    same(model(TOKENS), model.output(model.body(TOKENS)[:, -1]))


def test_a_body_may_be_given_more_than_its_tokens():
    bert = nn.Bert(WORDS, DIM, 2, 1, positions=8).eval()
    segments = (TOKENS > 5).long()
    model = nn.TokenClassifier(bert, DIM, 3).eval()
    assert torch.equal(model(TOKENS, segments=segments), model.output(bert(TOKENS, segments=segments)))
    assert not torch.equal(model(TOKENS, segments=segments), model(TOKENS))


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_a_classifier_over_bert_is_transformers_own(kind, tmp_path):
    """pool="body" is what BertForSequenceClassification does: the first token through the layer that BERT was trained with."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, num_labels=3,
        max_position_embeddings=8, pad_token_id=0,
    )  # fmt: skip
    name = {"sequence": "BertForSequenceClassification", "token": "BertForTokenClassification"}[kind]
    plain = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    plain.save_pretrained(tmp_path)
    bert = nn.Bert.from_pretrained(tmp_path)
    model = nn.SequenceClassifier(bert, DIM, 3, "body") if kind == "sequence" else nn.TokenClassifier(bert, DIM, 3)
    model.output.load_state_dict(plain.classifier.state_dict())
    due = plain(input_ids=TOKENS, attention_mask=KEEP.long()).logits
    found = model(TOKENS, mask=padding(keep=KEEP))
    real = slice(None) if kind == "sequence" else KEEP
    same(found[real], due[real], atol=1e-5)


# -- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_pooling_is_a_matrix_of_one_query(heads):
    pool, x = nn.AttentionPooling(DIM, heads, **WIDE), numbers(3, 7, DIM)
    same(pool(x, mask=PADDING), nn.Mean()(x, mask=PADDING))  # it begins as the mean
    theirs.init.normal_(pool.query, std=3)
    y, A = pool(x, mask=PADDING, return_attention=True)
    keys = x.view(3, 7, heads, -1).transpose(1, 2)
    scores = (pool.query @ keys.mT) / math.sqrt(DIM // heads)
    W = scores.masked_fill(~KEEP[:, None, None], float("-inf")).softmax(-1)
    same(A.to_dense(), W)
    same(y, (W @ keys).flatten(1))
    same(A.sum(-1), torch.ones(3, heads, 1, **WIDE))
    pool.reset_parameters()
    assert not pool.query.any()


@pytest.mark.parametrize("pool", [nn.Mean(), nn.AttentionPooling(DIM, 2, **WIDE)], ids=["mean", "attention"])
def test_what_is_not_there_is_not_pooled(pool):
    x = numbers(3, 7, DIM)
    y = pool(x, mask=PADDING)
    for hidden in (float("nan"), float("inf")):
        same(pool(x.masked_fill(~KEEP[..., None], hidden), mask=PADDING), y)
    same(pool(x, mask=causal & PADDING), y)  # who may meet whom is the body's affair
    same(pool(x, mask=full), pool(x))
    same(pool(x, mask=padding([7, 0, 1]))[1], torch.zeros(DIM, **WIDE))  # nothing is there
    same(pool(x, mask=padding(keep=KEEP.flip(1))), pool(x.flip(1), mask=PADDING))


def test_a_mean_of_many_tokens_stays_in_the_range_of_16_bits():
    x = torch.full((1, 100, 2), 1000.0, dtype=torch.float16)
    assert torch.equal(nn.Mean()(x, mask=padding([90])), x[:, 0])


# -- language models --------------------------------------------------------------------------------------------------


def language(**options: Any) -> nn.LanguageModel:
    return nn.LanguageModel(WORDS, DIM, 2, 2, **{"position": nn.rotary(), "norm_first": True, **options, **WIDE}).eval()


@pytest.mark.parametrize("tied", [True, False])
def test_a_language_model_is_pytorchs_causal_encoder(tied):
    model = language(position=None, tied=tied)
    logits, attentions = model(TOKENS, return_attention=True)
    plain, x = pytorchs(model.body.encoder, norm_first=True), model.body.embedding(TOKENS)
    hidden = torch.ones(7, 7).triu(1).bool()
    E = model.body.embedding.weight if tied else model.output.weight
    same(logits, plain(x, hidden) @ E.T)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + (2 - tied) * WORDS * DIM
    given = plain.layers[0].norm1(x)
    due = plain.layers[0].self_attn(given, given, given, attn_mask=hidden, average_attn_weights=False)[1]
    same(attentions[0].to_dense(), due)
    same(model(TOKENS), logits)


@pytest.mark.parametrize("mask", [causal, causal & window(2, 0)], ids=str)
def test_what_comes_later_tells_nothing_to_what_came_before(mask):
    model = language(mask=mask)
    other = TOKENS.clone()
    other[:, 4:] = (other[:, 4:] + 1) % WORDS
    same(model(other)[:, :4], model(TOKENS)[:, :4])
    assert (model(other)[:, 4:] - model(TOKENS)[:, 4:]).abs().amin() > 1e-6


def test_a_model_that_fills_in_sees_both_sides():
    model = language(mask=None)
    other = TOKENS.clone()
    other[:, 6] = (other[:, 6] + 1) % WORDS
    assert (model(other)[:, 0] - model(TOKENS)[:, 0]).abs().amin() > 1e-6
    for row, length in enumerate(LENGTHS):
        same(model(TOKENS, mask=PADDING)[row, :length], model(TOKENS[row : row + 1, :length])[0])


POSITIONS = {
    "sinusoidal": nn.sinusoidal,
    "learned": lambda: nn.learned(7, DIM, **WIDE),
    "rotary": nn.rotary,
    "alibi": lambda: nn.alibi(2),
    "relative": lambda: nn.relative(2, **WIDE),
    "none": lambda: None,
}


@pytest.mark.parametrize("mask", [causal, causal & window(2, 0)], ids=str)
@pytest.mark.parametrize("position", POSITIONS)
def test_writing_token_by_token_is_reading_all(position, mask):
    model = language(position=POSITIONS[position](), mask=mask)
    logits = model(TOKENS)
    for cuts in ([0, 7], [0, 1, 2, 3, 4, 5, 6, 7], [3, 7], [3, 4, 6, 7]):
        state = model.start(TOKENS[:, : cuts[0]])
        same(torch.cat([model.step(TOKENS[:, a:b], state) for a, b in pairwise(cuts)], 1), logits[:, cuts[0] :])


def test_beginnings_are_padded_on_the_left_and_rows_are_chosen():
    model = language()
    turned, keep = TOKENS.flip(1), padding(keep=KEEP.flip(1))
    state = model.start(turned[:, :6], padding(keep=KEEP.flip(1)[:, :6]))
    state.select(torch.tensor([1, 0, 1]))
    found = model.step(turned[[1, 0, 1], 6:], state)
    same(found, model(turned, mask=keep)[[1, 0, 1], 6:])
    same(found[:1], model(turned[1:2, -4:])[:, -1:])  # as if there were no padding
    same(model.step(turned[[1, 0, 1], :1], state)[:1], model(torch.cat((turned[1:2, -4:], turned[1:2, :1]), 1))[:, -1:])


def test_samples_follow_the_chances():
    model = language(position=None)
    start, chances = TOKENS[:1, :2], model(TOKENS[:1, :2])[0, -1].detach().softmax(-1)
    draws = torch.Generator().manual_seed(1)
    counted = nn.sample(model, start.expand(4000, -1), limit=1, generator=draws)[:, -1].bincount(minlength=WORDS) / 4000
    assert (counted - chances).abs().max() < 0.03
    best = chances.topk(2).indices
    drawn = nn.sample(model, start.expand(200, -1), limit=1, topk=2)[:, -1]
    assert set(drawn.tolist()) == set(best.tolist())
    with torch.no_grad():
        model.body.embedding.weight *= 100
    bold = nn.sample(model, start.expand(50, -1), limit=1, temperature=2e-38)  # a logit over that is beyond float32
    assert set(bold[:, -1].tolist()) == {int(model(start)[0, -1].argmax())}


def test_a_sample_without_chance_is_the_likeliest_text():
    model = language()
    turned, keep = TOKENS.flip(1), KEEP.flip(1)
    written = nn.sample(model, turned, limit=4, temperature=0, mask=padding(keep=keep))
    for row, length in enumerate(LENGTHS):
        alone = turned[row : row + 1, -length:]
        for _ in range(4):
            alone = torch.cat((alone, model(alone)[:, -1:].argmax(-1)), 1)
        assert torch.equal(written[row, -4 - length :], alone[0])
    tied = theirs.init.zeros_(language(position=None).body.embedding.weight)
    flat = language(position=None)
    flat.body.embedding.weight = tied  # all tokens are equally likely
    assert len(set(nn.sample(flat, turned[:1].expand(100, -1), limit=1, topk=3)[:, -1].tolist())) == 3


class Told:
    """Writes what it was told, row by row."""

    def __init__(self, *words: list[int]) -> None:
        self.words = torch.tensor(words)

    def start(self, source: Tensor, mask: Any = None) -> list[int]:
        return [0]

    def step(self, tokens: Tensor, state: list[int]) -> Tensor:
        state[0] += 1
        return F.one_hot(self.words[:, state[0] - 1 : state[0]], WORDS).float()


def test_a_row_stops_at_the_end_and_all_rows_at_the_last_one():
    told, begun = Told([5, 2, 7, 8, 9], [6, 3, 4, 2, 9]), torch.tensor([[1], [1]])
    assert nn.sample(told, begun, limit=5, temperature=0, end=2).tolist() == [[1, 5, 2, 2, 2], [1, 6, 3, 4, 2]]
    assert nn.sample(told, begun, limit=3, temperature=0, end=2).tolist() == [[1, 5, 2, 2], [1, 6, 3, 4]]
    assert nn.sample(told, begun, limit=5, temperature=0)[:, 1:].equal(told.words)


# -- translation ------------------------------------------------------------------------------------------------------

TARGETS = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(2))


def translator(**options: Any) -> nn.SequenceToSequence:
    return nn.SequenceToSequence(WORDS, 9, DIM, 2, 2, **{"position": nn.sinusoidal(), **options, **WIDE}).eval()


def test_a_translation_is_pytorchs_transformer_between_embeddings():
    model = translator(position=None)
    plain = theirs.Transformer(DIM, 2, 2, 2, 4 * DIM, dropout=0.0, batch_first=True, **WIDE)
    plain.load_state_dict(model.transformer.state_dict())
    logits, attentions = model(TOKENS, TARGETS, PADDING, return_attention=True)
    x, y = model.source.weight[TOKENS] * 4, model.target.weight[TARGETS] * 4
    later = torch.ones(5, 5).triu(1).bool()
    due = plain(x, y, tgt_mask=later, src_key_padding_mask=~KEEP, memory_key_padding_mask=~KEEP, tgt_is_causal=True)
    same(logits, due @ model.target.weight.T)
    same(model(TOKENS, TARGETS, PADDING), logits)
    last = attentions.decoder[-1].memory
    assert last.shape == (3, 2, 5, 7)
    same(last.sum(-1), torch.ones(3, 2, 5, **WIDE))
    assert not last.to_dense()[~KEEP[:, None, None].expand(last.shape)].any()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_embeddings_may_be_shared_and_tied(shared, tied):
    model = translator(tied=tied) if not shared else nn.SequenceToSequence(WORDS, None, DIM, 2, 2, tied=tied, **WIDE)
    tables = [name for name, p in model.named_parameters() if p.shape[0] in (WORDS, 9)]
    due = ["target.weight", *([] if shared else ["source.weight"]), *([] if tied else ["output.weight"])]
    assert sorted(tables) == sorted(due)
    assert model(TOKENS, TARGETS).shape == (3, 5, WORDS if shared else 9)
    assert f"shared={shared}, tied={tied}" in repr(model)


@pytest.mark.parametrize("position", ["sinusoidal", "rotary", "alibi"])
def test_translating_word_by_word_is_teacher_forcing(position):
    model = translator(position=POSITIONS[position]())
    logits = model(TOKENS, TARGETS, PADDING)
    state = model.start(TOKENS, PADDING)
    same(torch.cat([model.step(word, state) for word in TARGETS.split(1, 1)], 1), logits)
    state = model.start(TOKENS, PADDING)
    model.step(TARGETS[:, :2], state)
    state.select(torch.tensor([2, 0, 0]))
    same(model.step(TARGETS[[2, 0, 0], 2:], state), logits[[2, 0, 0], 2:])
    for row, length in enumerate(LENGTHS):
        same(model(TOKENS[row : row + 1, :length], TARGETS[row : row + 1]), logits[row : row + 1])


def test_searches_write_what_is_likeliest():
    model = translator(position=nn.rotary())
    found = nn.greedy(model, TOKENS, mask=PADDING, begin=1, end=2, limit=5)
    fed = torch.cat((torch.ones(3, 1, dtype=torch.int64), found.tokens[:, :-1]), 1)
    best = model(TOKENS, fed, PADDING).argmax(-1)
    for row, length in enumerate(found.lengths):
        assert torch.equal(best[row, :length], found.tokens[row, :length])
    wide = nn.beam_search(model, TOKENS, mask=PADDING, begin=1, end=2, limit=5, beams=9, length_penalty=0.0)
    assert (wide.scores >= found.scores - 1e-6).all()


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("patch", "size"), [(2, (4, 6)), ((2, 3), (4, 6)), ((4, 6), (4, 6)), (1, (3, 2))], ids=str)
def test_patches_are_what_unfold_cuts_out(patch, size):
    patches, images = nn.Patches(3, DIM, patch, **WIDE), numbers(2, 3, *size)
    cut = F.unfold(images, patches.patch, stride=patches.patch).mT  # (batch, patches, channels · rows · columns)
    due = cut @ patches.projection.weight.flatten(1).T + patches.projection.bias
    same(patches(images), due)
    rows, columns = patches.grid(size)
    assert rows * columns == due.shape[1]
    high, wide = patches.patch
    second = images[:, :, :high, wide : 2 * wide] if columns > 1 else images[:, :, :high, :wide]
    same((second.flatten(1) @ patches.projection.weight.flatten(1).T + patches.projection.bias), due[:, int(columns > 1)])


@pytest.mark.parametrize("class_token", [True, False])
def test_an_image_encoder_is_pytorchs_behind_patches(class_token):
    options: dict[str, Any] = {"norm_first": True, "activation": "gelu"}
    model = nn.ImageEncoder((4, 6), 2, 3, DIM, 2, 2, class_token=class_token, **options, **WIDE)
    images = numbers(2, 3, 4, 6)
    y, attentions = model(images, return_attention=True)
    table = model.encoder.position.position.table if class_token else model.encoder.position.table
    x = model.patches(images) + table
    if class_token:
        x = torch.cat((model.class_token.expand(2, 1, DIM), x), 1)
    plain = pytorchs(model.encoder, **options)
    same(y, plain(x))
    for A, W in zip(attentions, weights(plain, x), strict=True):
        same(A.to_dense(), W)
    looked = model.on_grid(attentions[-1][:, :, 0])
    assert looked.shape == (2, 2, 2, 3)
    same(looked.flatten(2), attentions[-1].to_dense()[:, :, 0, int(class_token) :])
    same(model.on_grid(torch.arange(6.0)), torch.arange(6.0).view(2, 3))


@pytest.mark.parametrize("made", [lambda: nn.rotary(grid=(2, 3)), lambda: nn.sinusoidal(grid=(2, 3)), lambda: nn.alibi(2)])
def test_the_class_token_stands_outside_the_grid(made):
    """Its place has no position, and the first patch's is the first."""
    options: dict[str, Any] = {"position": made(), **WIDE}
    with_token = nn.ImageEncoder((4, 6), 2, 1, DIM, 2, 1, **options)
    x = numbers(1, 7, DIM)
    position, inner = with_token.encoder.position, options["position"]
    same(position(x), torch.cat((x[:, :1], inner(x[:, 1:])), 1))
    same(position.turn(x), torch.cat((x[:, :1], inner.turn(x[:, 1:])), 1))
    assert (position.bias() is None) == (inner.bias() is None)
    assert with_token(numbers(2, 1, 4, 6)).shape == (2, 7, DIM)


# -- sound ------------------------------------------------------------------------------------------------------------


def plain_log_mel(wave: np.ndarray, rate: int, mels: int, span: int, step: int, size: int, high: float) -> np.ndarray:
    """Frame by frame and band by band."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(span) / span)
    left = (size - span) // 2
    around = np.pad(wave, size // 2)
    mel = np.linspace(0, 2595 * np.log10(1 + high / 700), mels + 2)
    corners = 700 * (10 ** (mel / 2595) - 1)
    f = np.arange(size // 2 + 1) * rate / size
    frames = []
    for t in range(1 + len(wave) // step):
        cut = around[t * step + left : t * step + left + span] * hann
        power = np.abs(np.fft.rfft(np.concatenate((np.zeros(left), cut, np.zeros(size - span - left))))) ** 2
        bands = [power @ np.interp(f, corners[m : m + 3], (0, 1, 0)) for m in range(mels)]
        frames.append(np.log(np.maximum(bands, 1e-10)))
    return np.array(frames)


@pytest.mark.parametrize(
    ("rate", "mels", "span", "step", "size", "high"),
    [
        (8000, 20, 200, 80, 256, 4000.0),
        (16000, 80, 400, 160, 512, 8000.0),
        (8000, 60, 200, 80, 256, 3000.0),
        (8000, 100, 200, 80, 512, 4000.0),
    ],
)
def test_a_spectrum_is_that_of_a_plain_computation(rate, mels, span, step, size, high):
    wave = numbers(1003)
    found = nn.log_mel(wave, rate, mels=mels, high=high)
    due = torch.from_numpy(plain_log_mel(wave.numpy(), rate, mels, span, step, size, high))
    same(found, due, atol=1e-9)
    same(nn.log_mel(wave.float(), rate, mels=mels, high=high), due.float(), atol=2e-3)
    assert nn.log_mel(wave.expand(2, 3, -1), rate, mels=mels).shape == (2, 3, 1 + 1003 // step, mels)


def test_a_tone_is_loud_in_its_band():
    t = torch.arange(4000) / 8000
    for hz in (300, 1000, 2500):
        frame = nn.log_mel((2 * math.pi * hz * t).sin(), 8000, mels=30)[20]
        bands = mel_bands(8000, 256, 30, 0.0, 4000.0)
        assert int(frame.argmax()) == int(bands[round(hz * 256 / 8000)].argmax())


def test_bands_join_without_a_gap():
    """Between the first and the last centre the triangles sum to 1."""
    total = mel_bands(16000, 512, 40, 0.0, 8000.0).sum(1)
    first, last = (700 * (10 ** (2840.02 * m / 41 / 2595) - 1) * 512 / 16000 for m in (1, 40))
    same(total[math.ceil(first) : math.floor(last)], torch.ones(math.floor(last) - math.ceil(first), **WIDE))


def test_silence_behind_a_sound_changes_none_of_its_frames():
    wave = numbers(2, 810)
    due = nn.log_mel(wave, 8000, mels=20)
    for more in (1, 80, 1000):
        found = nn.log_mel(F.pad(wave, (0, more)), 8000, mels=20)
        same(found[:, : due.shape[1]], due)
    assert torch.equal(nn.log_mel(torch.zeros(100), 8000, mels=20), torch.full((2, 20), 1e-10).log())


@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (1, 1), (3, 1)], ids=str)
def test_frames_that_are_not_there_change_nothing(strides):
    frames, x = nn.Frames(6, DIM, strides=strides, **WIDE), numbers(4, 11, 6)
    lengths = [11, 6, 2, 1]
    mask = padding(lengths)
    y, left = frames(x, mask=mask), frames.mask_of_outputs(x, mask)
    steps = [math.ceil(math.ceil(n / strides[0]) / strides[1]) for n in lengths]
    assert y.shape == (4, steps[0], DIM)
    assert torch.equal(left.to_dense(1, steps[0], batch=4)[:, 0, 0], torch.arange(steps[0]) < torch.tensor(steps)[:, None])
    for row, length in enumerate(lengths):
        plain = F.gelu(F.conv1d(x[row, :length].T, frames.conv1.weight, frames.conv1.bias, strides[0], 1))
        plain = F.gelu(F.conv1d(plain, frames.conv2.weight, frames.conv2.bias, strides[1], 1)).T
        same(y[row, : steps[row]], plain)
        same(frames(x[row : row + 1, :length])[0], plain)
    assert frames.mask_of_outputs(x, None) is None


def test_an_audio_encoder_is_an_encoder_behind_frames():
    model, x, mask = sound(), numbers(3, 11, 6), padding([11, 6, 3])
    y, attentions = model(x, mask=mask, return_attention=True)
    left = padding([6, 3, 2])
    same(y, model.encoder(model.frames(x, mask=mask), mask=left))
    assert [A.shape for A in attentions] == [(3, 2, 6, 6)] * 2
    for row, (length, steps) in enumerate(zip((11, 6, 3), (6, 3, 2), strict=True)):
        same(y[row, :steps], model(x[row : row + 1, :length])[0])


@pytest.mark.parametrize("pool", ["mean", "attention"])
def test_a_sound_is_classified_by_the_frames_that_there_are(pool):
    model = nn.SequenceClassifier(sound(), DIM, 3, pool, **WIDE)
    x = numbers(3, 11, 6)
    logits = model(x, mask=padding([11, 6, 3]))
    for row, length in enumerate((11, 6, 3)):
        same(model(x[row : row + 1, :length]), logits[row : row + 1])


# -- what nobody asked for --------------------------------------------------------------------------------------------

ASKING: dict[str, Callable[[], tuple[theirs.Module, tuple[Tensor, ...]]]] = {
    "classifier": lambda: (nn.SequenceClassifier(text(), DIM, 3, "attention", **WIDE), (TOKENS,)),
    "language": lambda: (language(), (TOKENS,)),
    "translation": lambda: (translator(), (TOKENS, TARGETS)),
    "pictures": lambda: (nn.ImageEncoder(4, 2, 1, DIM, 2, 2), (torch.zeros(2, 1, 4, 4),)),
    "sound": lambda: (sound(), (numbers(3, 7, 6),)),
}


@pytest.mark.parametrize("name", ASKING)
def test_no_matrix_is_kept_that_nobody_asked_for(name):
    """A matrix keeps the queries and keys of its layer alive."""
    model, inputs = ASKING[name]()
    asked = []
    for layer in model.modules():
        if isinstance(layer, nn.SelfAttention | nn.CrossAttention | nn.AttentionPooling):
            layer.register_forward_hook(lambda layer, given, told, found: asked.append(found), with_kwargs=True)
    model(*inputs)
    assert asked
    assert all(isinstance(found, Tensor) for found in asked)
    asked.clear()
    model(*inputs, return_attention=True)
    assert all(isinstance(found, tuple) for found in asked)


# -- bad input --------------------------------------------------------------------------------------------------------

HIDDEN = ~KEEP  # PyTorch's convention
INVERTED = "mask must be one of regard.masks, True = may attend; got a torch.bool tensor of shape (3, 7). Convert"
X = torch.randn(3, 7, DIM)

BAD: dict[str, tuple[type[Exception], Callable[[], Any]]] = {
    "TokenClassifier: classes must be at least 1; got 0": (ValueError, lambda: nn.TokenClassifier(text(), DIM, 0)),
    "SequenceClassifier: classes must be at least 1; got -1": (ValueError, lambda: nn.SequenceClassifier(text(), DIM, -1)),
    "SequenceClassifier: dropout must be in [0, 1); got 1": (
        ValueError,
        lambda: nn.SequenceClassifier(text(), DIM, 3, dropout=1.0),
    ),
    "TokenClassifier: dropout must be a number from 0 to 1; got -0.1": (
        ValueError,
        lambda: nn.TokenClassifier(text(), DIM, 3, dropout=-0.1),
    ),
    "TokenEmbedding: dropout must be in [0, 1)": (ValueError, lambda: text(dropout=1)),
    "SequenceClassifier: pool must be one of 'first', 'mean', 'attention', 'body'; got 'max'": (
        ValueError,
        lambda: nn.SequenceClassifier(text(), DIM, 3, "max"),
    ),
    'SequenceClassifier: pool="body" takes a body that has a method pool, as Bert has; TextEncoder has none.': (
        Unsupported,
        lambda: nn.SequenceClassifier(text(), DIM, 3, "body"),
    ),
    "Bert: this model has no pooler": (
        Unsupported,
        lambda: nn.SequenceClassifier(nn.Bert(WORDS, DIM, 2, 1, pooler=False), DIM, 3, "body")(TOKENS),
    ),
    "TokenClassifier: what its body TextEncoder makes must be (batch, n, 12); got shape (3, 7, 16)": (
        ShapeError,
        lambda: nn.TokenClassifier(text(), 12, 3)(TOKENS),
    ),
    "SequenceClassifier: what its body Flatten makes must be (batch, n, 16); got shape (3, 112)": (
        ShapeError,
        lambda: nn.SequenceClassifier(theirs.Flatten(), DIM, 3)(X),
    ),
    "Mean: x must be (batch, n, dim); got shape (7, 16)": (ShapeError, lambda: nn.Mean()(X[0])),
    "FirstToken: x must be (batch, n, dim); got shape (7, 16)": (ShapeError, lambda: nn.FirstToken()(X[0])),
    "AttentionPooling: x must be (batch, n, 8); got shape (3, 7, 16)": (ShapeError, lambda: nn.AttentionPooling(8)(X)),
    "AttentionPooling: dim must be a multiple of heads; got dim 16 and heads 3": (
        ShapeError,
        lambda: nn.AttentionPooling(DIM, 3),
    ),
    "Mean: padding has 2 lengths and the batch 3 rows": (ShapeError, lambda: nn.Mean()(X, mask=padding([7, 4]))),
    f"Mean: {INVERTED}": (TypeError, lambda: nn.Mean()(X, mask=HIDDEN)),
    f"FirstToken: {INVERTED}": (TypeError, lambda: nn.FirstToken()(X, mask=HIDDEN)),
    f"AttentionPooling: {INVERTED}": (TypeError, lambda: nn.AttentionPooling(DIM)(X, mask=HIDDEN)),
    f"LanguageModel: {INVERTED}": (TypeError, lambda: language()(TOKENS, mask=HIDDEN)),
    f"Frames: {INVERTED}": (TypeError, lambda: sound()(numbers(3, 7, 6), mask=HIDDEN)),
    f"SelfAttention: {INVERTED}": (TypeError, lambda: nn.TokenClassifier(text(), DIM, 3)(TOKENS, mask=HIDDEN)),
    f"sample: {INVERTED}": (TypeError, lambda: nn.sample(language(), TOKENS, limit=2, mask=HIDDEN)),
    "Frames: mask says which tokens there are, as padding(lengths) and padding(keep=…) do, and not who may meet whom; got "
    "causal & padding([7, 4, 1]).": (Unsupported, lambda: sound()(numbers(3, 7, 6), mask=causal & PADDING)),
    "LanguageModel: mask says which tokens there are": (
        Unsupported,
        lambda: language().start(TOKENS, documents([0, 0, 0, 1, 1, 1, 1])),
    ),
    "the mask hides the last one of row 1, 2.": (ValueError, lambda: nn.sample(language(), TOKENS, limit=2, mask=PADDING)),
    "sample: end must be below the vocabulary's 11; got 11": (
        ValueError,
        lambda: nn.sample(language(), TOKENS, limit=2, end=WORDS),
    ),
    "TokenEmbedding: tokens must be from 0 to 10, there are 11; got -1 to 3 in shape (1, 2)": (
        IndexError,
        lambda: text()(torch.tensor([[-1, 3]])),
    ),
    "there are 9; got 0 to 9": (IndexError, lambda: translator()(TOKENS, torch.tensor([[0, 9]] * 3))),
    "TokenEmbedding: tokens must hold tokens, int64 or int32; got torch.float32": (TypeError, lambda: text()(TOKENS.float())),
    "TokenEmbedding: tokens must be (batch, n), with one row": (ShapeError, lambda: text()(TOKENS[0])),
    "SequenceToSequence: source must be (batch, n)": (ShapeError, lambda: translator()(TOKENS[0], TARGETS)),
    "SequenceToSequence: target must have as many rows as there are sources; got 2": (
        ShapeError,
        lambda: translator()(TOKENS, TARGETS[:2]),
    ),
    "Patches: patch must divide the size of the images; got patch (4, 4), size (28, 30)": (
        ShapeError,
        lambda: nn.Patches(1, DIM, 4)(torch.zeros(1, 1, 28, 30)),
    ),
    "Patches: patch must be at least 1; got 0": (ValueError, lambda: nn.Patches(1, DIM, 0)),
    "ImageEncoder: images must be (batch, 1, 28, 28); got shape (3, 28, 28)": (
        ShapeError,
        lambda: nn.ImageEncoder(28, 4, 1, DIM, 2, 1)(torch.zeros(3, 28, 28)),
    ),
    "Frames: x must be (batch, n, 6); got shape (3, 7, 16)": (ShapeError, lambda: sound()(X)),
    "Frames: strides must be at least 1; got 0": (ValueError, lambda: nn.Frames(6, DIM, strides=(1, 0))),
    "log_mel: mels must be at least 1; got 0": (ValueError, lambda: nn.log_mel(torch.zeros(800), 8000, mels=0)),
    "log_mel: each of 3000 bands from 0 to 4000 Hz must hold a frequency of the transform": (
        ValueError,
        lambda: nn.log_mel(torch.zeros(800), 8000, mels=3000),
    ),
    "log_mel: each of 2 bands from 1000 to 1000 Hz": (
        ValueError,
        lambda: nn.log_mel(torch.zeros(800), 8000, mels=2, low=1000.0, high=1000.0000000000002),
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", BAD)
def test_bad_inputs_are_named(sentence):
    kind, call = BAD[sentence]
    with pytest.raises(kind) as refused:
        call()
    assert type(refused.value) is kind
    assert sentence in str(refused.value)


def test_masks_of_keys_are_understood_in_any_writing():
    """What says only which frames there are may be said in parts."""
    model, x = sound(), numbers(3, 7, 6)
    due = model(x, mask=padding(LENGTHS))
    for mask in (padding([9, 4, 1]) & padding(keep=KEEP), padding(LENGTHS) & prefix(7) & full, ~~padding(LENGTHS)):
        same(model(x, mask=mask), due)
