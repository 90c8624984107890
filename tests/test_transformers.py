"""The Hugging Face adapter against transformers' own eager attention."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModel, AutoModelForCausalLM, masking_utils

import regard
import regard.transformers as adapter
from regard.checks import Unsupported
from regard.transformers import layer, masking, sparse

SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"vocab_size": 50, "max_position_embeddings": 64, **SPECIAL}
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = {**SMALL, **WIDTH, "num_key_value_heads": 2}

CONFIGS = {
    "bert": lambda: transformers.BertConfig(**SMALL, **WIDTH),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, **SPECIAL),
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, head_dim=8, sliding_window=3),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=3, layer_types=HYBRID),
    "gemma2": lambda: transformers.Gemma2Config(
        **GROUPED, head_dim=8, sliding_window=3, attn_logit_softcapping=0.5, layer_types=HYBRID
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=3, layer_types=HYBRID
    ),
    "bart": lambda: transformers.BartConfig(
        vocab_size=50, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        decoder_start_token_id=1, forced_eos_token_id=None, **SPECIAL,
    ),
}  # fmt: skip
HYBRID = ["sliding_attention", "full_attention"]
DECODERS = ["gpt2", "llama", "mistral", "gemma3", "gemma2", "gpt_oss"]


def twins(name: str, auto: Any = AutoModel, **changes: Any) -> tuple[Any, Any]:
    """The same random model twice: eager, and with regard."""
    made = []
    for implementation in ("eager", "regard"):
        torch.manual_seed(7)
        config = CONFIGS[name]()
        for key, value in changes.items():
            setattr(config, key, value)
        made.append(auto.from_config(config, attn_implementation=implementation, dtype=torch.float32).eval())
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def batch(side: str, length: int = 9, padded: int = 4) -> dict[str, torch.Tensor]:
    """Two rows of tokens; the second has padding on that side."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 50, (2, length), generator=generator)
    keep = torch.ones_like(ids)
    if side != "none":
        keep[1, slice(0, padded) if side == "left" else slice(length - padded, None)] = 0
    return {"input_ids": ids.masked_fill(keep == 0, 0), "attention_mask": keep}


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right", "none"])
@pytest.mark.parametrize("name", ["bert", *DECODERS])
def test_hidden_states_and_weights_equal_eager(name: str, side: str) -> None:
    eager, ours = twins(name)
    inputs = batch(side)
    with torch.no_grad():
        wanted, found = (model(**inputs, output_attentions=True) for model in (eager, ours))
    real = inputs["attention_mask"].bool()
    same(found.last_hidden_state[real], wanted.last_hidden_state[real])
    assert len(found.attentions) == 2
    for lazy, dense in zip(found.attentions, wanted.attentions, strict=True):
        assert isinstance(lazy, regard.Attention)
        assert lazy.shape == dense.shape == (2, 4, 9, 9)
        rows = real[:, None, :].expand(2, 4, 9)
        same(lazy.to_dense()[rows], dense[rows])


def test_encoder_decoder_has_three_kinds_of_lazy_matrices() -> None:
    eager, ours = twins("bart")
    inputs = batch("right")
    inputs["decoder_input_ids"] = batch("none", 5)["input_ids"]
    with torch.no_grad():
        wanted, found = (model(**inputs, output_attentions=True) for model in (eager, ours))
    same(found.last_hidden_state, wanted.last_hidden_state)
    for kind, shape in (("encoder", (2, 4, 9, 9)), ("decoder", (2, 4, 5, 5)), ("cross", (2, 4, 5, 9))):
        for lazy, dense in zip(found[f"{kind}_attentions"], wanted[f"{kind}_attentions"], strict=True):
            assert isinstance(lazy, regard.Attention)
            assert lazy.shape == shape
            rows = inputs["attention_mask"].bool() if kind == "encoder" else torch.ones(2, 5, dtype=torch.bool)
            rows = rows[:, None, :].expand(2, 4, -1)
            same(lazy.to_dense()[rows], dense[rows])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_cached_greedy_decoding_equals_eager(name: str, side: str, cache: str) -> None:
    eager, ours = twins(name, AutoModelForCausalLM)
    inputs = batch(side)
    steps = 4
    options = {
        "max_new_tokens": steps, "min_new_tokens": steps, "do_sample": False, "return_dict_in_generate": True,
        "output_attentions": True, "output_logits": True, "disable_compile": True,
        "cache_implementation": None if cache == "dynamic" else cache,
    }  # fmt: skip
    wanted, found = (model.generate(**inputs, **options) for model in (eager, ours))
    assert torch.equal(found.sequences, wanted.sequences)
    for ours_step, eager_step in zip(found.logits, wanted.logits, strict=True):
        same(ours_step, eager_step)
    assert len(found.attentions) == steps
    for step, layers in enumerate(found.attentions):
        for lazy, dense in zip(layers, wanted.attentions[step], strict=True):
            assert isinstance(lazy, regard.Attention)
            assert lazy.shape == dense.shape
            rows = inputs["attention_mask"].bool() if step == 0 else torch.ones(2, 1, dtype=torch.bool)
            rows = rows[:, None, :].expand(2, 4, -1)
            same(lazy.to_dense()[rows], dense[rows])


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_gradients_equal_eager(name: str) -> None:
    eager, ours = twins(name)
    inputs = batch("right")
    real = inputs["attention_mask"].bool()
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(int(real.sum()), 32, generator=generator)
    for model in (eager, ours):
        (model(**inputs).last_hidden_state[real] * direction).sum().backward()
    for (parameter, wanted), found in zip(eager.named_parameters(), ours.parameters(), strict=True):
        assert (wanted.grad is None) == (found.grad is None), parameter
        if wanted.grad is not None:
            torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-4, atol=1e-4, msg=parameter)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")  # from 5.23 on
def test_trains_with_gradient_checkpointing() -> None:
    _, ours = twins("llama", use_cache=False)
    inputs = batch("right")
    ours.train()
    ours(**inputs).last_hidden_state.sum().backward()
    wanted = [p.grad.clone() for p in ours.parameters() if p.grad is not None]
    ours.zero_grad()
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    ours(**inputs).last_hidden_state.sum().backward()
    for found, known in zip((p.grad for p in ours.parameters() if p.grad is not None), wanted, strict=True):
        same(found, known)


class Square(TorchDispatchMode):
    """Fails on a tensor that has both a dimension for every query and one for every key."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                assert sum(size >= self.length for size in tensor.shape) < 2, f"{func}: {tuple(tensor.shape)}"
        return result


@pytest.mark.parametrize("name", ["bert", "llama", "mistral"])
def test_nothing_of_queries_times_keys_is_stored(name: str) -> None:
    length = 1500  # more than any tile
    _, ours = twins(name, max_position_embeddings=length)
    inputs = batch("left", length, 100)
    with torch.no_grad(), Square(length):
        attentions = ours(**inputs, output_attentions=True).attentions
    assert attentions[0][0, :, 700].shape == (4, length)


# -- masks ------------------------------------------------------------------------------------------------------------

PADDING = torch.tensor([[1] * 12, [0] * 3 + [1] * 9]).bool()
IDS = torch.tensor([[0] * 5 + [1] * 7, [0] * 8 + [1] * 4])
POSITIONS = torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6], list(range(8)) + list(range(4))])
FUNCTIONS = {
    "causal": masking_utils.causal_mask_function,
    "bidirectional": masking_utils.bidirectional_mask_function,
    "sliding": masking_utils.sliding_window_causal_mask_function(3),
    "sliding both ways": masking_utils.sliding_window_bidirectional_mask_function(2),
    "overlay alone": masking_utils.sliding_window_overlay(4),
    "chunked": masking_utils.chunked_causal_mask_function(4, torch.tensor([0, 3])),
    "blocks": masking_utils.or_masks(masking_utils.causal_mask_function, masking_utils.blockwise_overlay(IDS)),
    "some both ways": masking_utils.and_masks(
        masking_utils.sliding_window_bidirectional_overlay(9), lambda batch, head, query, key: (query + key) % 3 > 0
    ),
    "packed": masking_utils.packed_sequence_compatibility_function(masking_utils.causal_mask_function, POSITIONS, IDS),
}
SYMBOLIC = ["causal", "bidirectional", "sliding", "sliding both ways", "overlay alone"]


def whole(mask: regard.masks.Mask) -> list[regard.masks.Mask]:
    return [mask, *(inner for part in mask.parts() for inner in whole(part))]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING, PADDING | True, PADDING[:, :8]])
@pytest.mark.parametrize("sizes", [(12, 12, 0, 0), (1, 12, 11, 0), (4, 12, 8, 0), (3, 7, 9, 5), (5, 12, 0, 0)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_mask_means_what_transformers_means(
    name: str, sizes: tuple[int, int, int, int], padding: torch.Tensor | None, one_by_one: bool
) -> None:
    queries, keys, q_offset, kv_offset = sizes
    asked = {
        "batch_size": 2, "q_length": queries, "kv_length": keys, "q_offset": q_offset, "kv_offset": kv_offset,
        "mask_function": FUNCTIONS[name], "attention_mask": padding, "use_vmap": one_by_one,
    }  # fmt: skip
    wanted = masking_utils.sdpa_mask(**asked, allow_is_causal_skip=False)
    lazy = masking.mask_forward(**asked)
    assert lazy.shape == wanted.shape
    found = lazy.mask.to_dense(queries, keys, batch=2, offset=lazy.offset)
    assert torch.equal(found, wanted.expand_as(found))
    known = not any(isinstance(part, regard.masks.contents.Where) for part in whole(lazy.mask))
    assert known == (name in SYMBOLIC)


def test_static_caches_count_in_a_tensor() -> None:
    lazy = masking.mask_forward(2, 1, 12, torch.tensor(11), 0)
    assert lazy.offset == 11


def test_padding_without_a_gap_is_dropped() -> None:
    assert masking.mask_forward(2, 4, 4, attention_mask=torch.ones(2, 4)).mask is regard.masks.causal


def test_the_empty_end_of_a_static_cache_is_hidden_by_causal_alone() -> None:
    """A prompt of 4 and a step in a cache of 12: the same masks as in a cache that grows, which kernels know by name."""
    keep = torch.tensor([[1] * 4, [0, 0, 1, 1]])
    assert masking.mask_forward(1, 4, 12, attention_mask=keep[:1]).mask is regard.masks.causal
    step = masking.mask_forward(1, 1, 12, 3, attention_mask=keep[:1])
    assert (step.mask, step.offset) == (regard.masks.causal, 3)
    padded = masking.mask_forward(2, 1, 12, 3, attention_mask=keep)
    assert padded.mask == regard.masks.causal & ~regard.masks.padding([0, 2])
    assert (
        not masking.mask_forward(1, 4, 12, mask_function=FUNCTIONS["bidirectional"], attention_mask=keep[:1])
        .mask.to_dense(4, 12, offset=0)[..., 4:]
        .any()
    )


def test_packed_sequences_stay_apart() -> None:
    eager, ours = twins("llama")
    ids = batch("none", 12)["input_ids"]
    with torch.no_grad():
        wanted, found = (m(input_ids=ids, position_ids=POSITIONS, use_cache=False) for m in (eager, ours))
    same(found.last_hidden_state, wanted.last_hidden_state)


@pytest.mark.parametrize("kind", ["boolean", "additive"])
def test_a_mask_of_four_dimensions_is_taken_as_it_is(kind: str) -> None:
    eager, ours = twins("llama")
    ids = batch("none")["input_ids"]
    allowed = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(1)) < 0.6
    allowed |= torch.eye(9, dtype=torch.bool)
    lowest = torch.finfo(torch.float32).min
    added = torch.zeros(2, 1, 9, 9).masked_fill(~allowed, lowest)
    with torch.no_grad():
        wanted = eager(input_ids=ids, attention_mask=added).last_hidden_state
        given = allowed if kind == "boolean" else added
        same(ours(input_ids=ids, attention_mask=given).last_hidden_state, wanted)


def test_one_tensor_is_one_mask_until_it_changes() -> None:
    added = torch.zeros(1, 1, 3, 3)
    first, _ = masking.from_tensor(added)
    assert masking.from_tensor(added)[0] is first
    added[..., 0] = -torch.inf
    assert not masking.from_tensor(added)[0].to_dense(3, 3)[..., 0].any()


def test_numbers_that_do_not_only_hide_are_a_bias() -> None:
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(1, 1, 5, 5, generator=generator)
    added[..., 2] = torch.finfo(torch.float32).min
    eager, ours = twins("bert")
    ids = batch("none", length=5)["input_ids"]
    wanted, found = (model(input_ids=ids, attention_mask=added, output_attentions=True) for model in (eager, ours))
    same(found.last_hidden_state, wanted.last_hidden_state)
    same(found.attentions[1].to_dense(), wanted.attentions[1])
    with pytest.raises(Unsupported, match=r"torch\.int64 does not say what its numbers mean"):
        masking.from_tensor(torch.ones(1, 1, 3, 3, dtype=torch.int64))


def test_a_position_bias_is_added() -> None:
    config = transformers.T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, **SPECIAL)
    config.decoder_start_token_id = 1
    torch.manual_seed(0)
    eager = AutoModel.from_config(config, attn_implementation="eager").eval()
    ours = copy.deepcopy(eager)
    ours.set_attn_implementation("regard")
    inputs = batch("right")
    wanted, found = (m(**inputs, decoder_input_ids=inputs["input_ids"], output_attentions=True) for m in (eager, ours))
    same(found.last_hidden_state, wanted.last_hidden_state)
    rows = inputs["attention_mask"].bool()[:, None].expand(2, 4, 9)
    same(found.encoder_attentions[1].to_dense()[rows], wanted.encoder_attentions[1][rows])
    same(found.cross_attentions[1].to_dense(), wanted.cross_attentions[1])
    grads = []
    for model, outputs in ((eager, wanted), (ours, found)):
        outputs.last_hidden_state.square().mean().backward()
        grads.append(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.grad)
    same(grads[1], grads[0])


class Layer(torch.nn.Module):
    """What the attention function asks of a layer."""

    is_causal = True


@pytest.mark.parametrize(
    ("queries", "is_causal", "wanted"),
    [
        (4, None, torch.ones(4, 6, dtype=torch.bool).tril()),  # top-left: the prefill of a longer, empty cache
        (4, False, torch.ones(4, 6, dtype=torch.bool)),
        (1, True, torch.ones(1, 6, dtype=torch.bool)),
    ],
)
def test_without_a_mask_the_layer_says_whether_it_is_causal(queries: int, is_causal: bool | None, wanted: torch.Tensor) -> None:
    q, k, v = torch.randn(1, 2, queries, 8), torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 5)
    output, weights = layer.attention_forward(Layer(), q, k, v, None, 0.0, 0.3, is_causal=is_causal)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, wanted, scale=0.3)
    same(output, expected.transpose(1, 2))
    assert output.shape == (1, queries, 2, 5)
    assert output.is_contiguous()
    assert weights.shape == (1, 2, queries, 6)


def test_learned_queries_of_batch_one_meet_every_row() -> None:
    q, k = torch.randn(1, 2, 4, 8), torch.randn(3, 2, 6, 8)
    output, weights = layer.attention_forward(Layer(), q, k, k, None, is_causal=False)
    same(output, torch.nn.functional.scaled_dot_product_attention(q.expand(3, -1, -1, -1), k, k).transpose(1, 2))
    assert weights.shape == (3, 2, 4, 6)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_arguments_that_would_change_the_weights_are_refused() -> None:
    x = torch.randn(1, 2, 3, 8)
    for name in sparse.REFUSED:
        layer.attention_forward(Layer(), x, x, x, None, **{name: None})
        with pytest.raises(Unsupported, match=f"Layer passes {name} "):
            layer.attention_forward(Layer(), x, x, x, None, **{name: torch.ones(2)})


def test_dropout_on_weights_while_training() -> None:
    """Different draws each time, the same again from the same seed, and gradients; the mean is the output without."""
    _, ours = twins("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.2)
    inputs = batch("none")
    still = ours(**inputs).last_hidden_state.detach()
    ours.train()
    torch.manual_seed(0)
    drawn = torch.stack([ours(**inputs).last_hidden_state.detach() for _ in range(50)])
    torch.manual_seed(0)
    again = ours(**inputs, output_attentions=True)
    assert torch.equal(again.last_hidden_state, drawn[0])
    assert not torch.equal(drawn[0], drawn[1])
    assert again.attentions[0].drop.p == 0.2
    assert float((drawn.mean(0) - still).abs().max()) < float((drawn - still).abs().max()) / 2
    again.last_hidden_state.sum().backward()


OUTSIDE = {
    "bloom": lambda: transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=2, n_head=4, **SPECIAL),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **SPECIAL
    ),
    "gptj": lambda: transformers.GPTJConfig(
        vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, **SPECIAL
    ),
    "deberta-v2": lambda: transformers.DebertaV2Config(**SMALL, **WIDTH),
    "deberta": lambda: transformers.DebertaConfig(**SMALL, **WIDTH),
    "openai-gpt": lambda: transformers.OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "xlm": lambda: transformers.XLMConfig(vocab_size=50, emb_dim=32, n_layers=2, n_heads=4),
    "roformer": lambda: transformers.RoFormerConfig(**SMALL, **WIDTH),
    "mpt": lambda: transformers.MptConfig(vocab_size=50, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_architectures_outside_the_interface_are_named(name: str) -> None:
    with pytest.raises(Unsupported, match=rf"Model \(model type {name}\) does its attention outside"):
        AutoModel.from_config(OUTSIDE[name](), attn_implementation="regard")
    model = AutoModel.from_config(OUTSIDE[name](), attn_implementation="eager")
    with pytest.raises(Unsupported, match=rf"\(model type {name}\)"):
        model.set_attn_implementation("regard")
    with pytest.raises(Unsupported, match=rf"\(model type {name}\)"):
        adapter.require(model)


def test_saved_models_outside_the_interface_are_named(tmp_path: Any) -> None:
    AutoModel.from_config(OUTSIDE["deberta-v2"]()).save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=r"DebertaV2Model \(model type deberta-v2\)"):
        AutoModel.from_pretrained(tmp_path, attn_implementation="regard")


@pytest.mark.parametrize("name", ["bloom", "mpt", "roformer"])
def test_a_model_that_computes_with_its_mask_is_named(name: str) -> None:
    model = AutoModel.from_config(OUTSIDE[name](), attn_implementation="eager").eval()
    model.config._attn_implementation_internal = "regard"  # as an unchecked class would have it
    with pytest.raises(Unsupported, match=rf"{name} models compute with their attention mask"):
        model(**batch("right"))


def test_require_asks_for_regard() -> None:
    eager, ours = twins("bert")
    adapter.require(ours)
    with pytest.raises(Unsupported, match='BertModel uses attn_implementation="eager"'):
        adapter.require(eager)
    eager.set_attn_implementation("regard")
    adapter.require(eager)
    eager.set_attn_implementation("sdpa")


def test_a_lazy_mask_can_be_carried_and_nothing_else() -> None:
    mask = masking.mask_forward(2, 4, 4)
    assert mask.ndim == 4
    assert mask.shape == (2, 1, 4, 4)
    assert mask.contiguous() is mask
    assert masking.mask_forward(9, 9, 9, attention_mask=mask) is mask
    assert not hasattr(mask, "to")
    assert copy.copy(mask).mask is mask.mask
    assert hash(mask) == hash(mask)
    for touch in (
        lambda: mask[:, 0],
        lambda: mask + 1,
        lambda: torch.ones(2) + mask,
        lambda: torch.where(mask, 1, 0),
        lambda: mask.to(torch.float32),
        lambda: mask == 0,
        lambda: ~mask,
        lambda: bool(mask),
    ):
        with pytest.raises(Unsupported, match="compute with their attention mask"):
            touch()
