"""Every architecture of `regard.testing.architectures`: tiny models with eager attention and with regard, compared."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

import regard
import regard.transformers as adapter
from regard.checks import Unsupported
from regard.testing.architectures import ARCHITECTURES, EOS, LENGTH, OUTSIDERS, Architecture, inputs, named, twins
from regard.testing.likeness import GREEDY, STEPS, compare, decode, gradients
from regard.transformers.requests import PARTLY

NEAR = 1e-5
REQUIRED = """bert roberta albert distilbert electra modernbert gpt2 gpt_neox opt llama mistral mixtral qwen2 qwen3 gemma gemma2
    gemma3 gpt_oss phi3 cohere olmo2 granite deepseek_v3 t5 bart mbart whisper vit deit dinov2 clip siglip wav2vec2 esm"""
STATIC = {"cache_implementation": "static"}
GENERATING = [architecture for architecture in ARCHITECTURES if architecture.generates]

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def name(architecture: Architecture) -> str:
    return architecture.name


def test_the_list_has_what_was_promised() -> None:
    listed = [architecture.name for architecture in ARCHITECTURES]
    assert len(listed) == len({*listed}) >= 75
    assert {*REQUIRED.split()} <= {*listed}


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=name)
def test_logits_weights_and_questions_equal_eager(architecture: Architecture) -> None:
    models = twins(architecture)
    for side in architecture.sides:
        found = compare(architecture, side, models)
        assert max(found.logits, found.weights, found.entropy, found.topk, found.received) <= NEAR, (side, found)
        assert found.kinds


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=name)
def test_gradients_equal_eager(architecture: Architecture) -> None:
    models = twins(architecture)
    assert max(gradients(architecture, side, models) for side in architecture.sides[-2:]) <= NEAR


@pytest.mark.parametrize("architecture", GENERATING, ids=name)
def test_cached_decoding_equals_eager(architecture: Architecture) -> None:
    """Logits and weights of every step; the weights are asked for when all steps are done."""
    models = twins(architecture)
    for side in architecture.sides:
        assert max(decode(architecture, side, models)) <= NEAR, side


WAYS = {
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True},
    "static": STATIC,
    "static beams": {**STATIC, "num_beams": 2},
}


@pytest.mark.parametrize("one", ["llama", "mistral", "gemma3_text", "gpt_oss", "deepseek_v32", "t5", "gemma3"])
@pytest.mark.parametrize("way", WAYS)
def test_ways_to_decode_equal_eager(one: str, way: str) -> None:
    """Whisper's beams are in tests/test_whisper.py: transformers keeps other rows of them."""
    options = WAYS[way]
    architecture = named(one)
    assert max(decode(architecture, "left" if architecture.head == "CausalLM" else "none", **options)) <= NEAR


@pytest.mark.parametrize("one", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("options", [{"prefill_chunk_size": 4}, {"use_cache": False}], ids=["chunks", "no cache"])
def test_prompts_in_chunks_and_without_a_cache(one: str, options: dict[str, Any]) -> None:
    assert max(decode(named(one), "left", **options)) <= NEAR


def test_prompt_lookup_takes_candidates_back() -> None:
    """Assisted decoding crops the cache after candidates that were refused."""
    made = []
    for model in twins(named("llama")):
        ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7, 8, 5, 6]])
        made.append(model.generate(ids, **{**GREEDY, "max_new_tokens": 8, "min_new_tokens": 8}, prompt_lookup_num_tokens=3))
    wanted, found = made
    assert torch.equal(found.sequences, wanted.sequences)
    for ours, theirs in zip(found.attentions, wanted.attentions, strict=True):
        for A, W in zip(ours, theirs, strict=True):
            assert A.shape == W.shape
            assert float((A.to_dense() - W).abs().max()) <= NEAR


def test_a_sliding_cache_says_which_token_comes_first() -> None:
    model = twins(named("mistral"))[1]
    window = model.config.sliding_window
    given = inputs(named("mistral"))
    for cache in (None, "static"):
        steps = model.generate(**given, **GREEDY, cache_implementation=cache).attentions
        assert [adapter.first_key(A) for A in steps[0]] == [0, 0]
        for n, layers in enumerate(steps[1:], 1):
            for A in layers:
                assert A.shape[-2:] == (1, window)
                assert adapter.first_key(A) == LENGTH + n - window
                assert bool((A.sum(-1) - 1).abs().max() < NEAR)


@pytest.mark.parametrize("one", ["llama", "mistral"])
def test_packed_sequences_equal_eager(one: str) -> None:
    """Positions that begin again begin another text; no padding, and no mask of four dimensions."""
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 3, 4, 5, 6]])
    ids = inputs(named(one))["input_ids"]
    options = {"position_ids": positions, "use_cache": False, "output_attentions": True}
    with torch.no_grad():
        wanted, found = (model(input_ids=ids, **options) for model in twins(named(one)))
    assert float((found.logits - wanted.logits).abs().max()) <= NEAR
    for A, W in zip(found.attentions, wanted.attentions, strict=True):
        assert float((A.to_dense() - W).abs().max()) <= NEAR
        assert float(A[0, :, 4:, :4].to_dense().abs().max()) == 0


@pytest.mark.parametrize("checkpoints", [False, True])
def test_gradients_through_the_matrices_equal_eager(checkpoints: bool) -> None:
    """A loss of the weights themselves, as a penalty while training has it."""
    given, made = inputs(named("llama")), []
    for model in twins(named("llama")):
        if checkpoints:
            model.train().gradient_checkpointing_enable({"use_reentrant": False})
        outputs = model(**given, output_attentions=True, use_cache=False)
        sum(A.topk(2).values.square().mean() for A in outputs.attentions).backward()
        made.append([parameter.grad for parameter in model.parameters()])
    far = [float((ours - theirs).abs().max()) for theirs, ours in zip(*made, strict=True) if theirs is not None]
    assert len(far) > 6
    assert max(far) <= NEAR


@pytest.mark.parametrize("one", ["bert", "llama", "t5", "vit"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(one: str, reentrant: bool) -> None:
    architecture = named(one)
    eager, lazy = twins(architecture)
    plain = gradients(architecture, "none", (eager, lazy))
    lazy.train()  # checkpoints are for training; the tiny models drop nothing
    for module in lazy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for held in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, held, None), float):
                setattr(module, held, 0.0)
    lazy.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert max(plain, gradients(architecture, "none", (eager, lazy))) <= NEAR


DROPOUT = {
    "bert": ("attention_probs_dropout_prob", "hidden_dropout_prob"),
    "gpt2": ("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    "llama": ("attention_dropout",),
    "bart": ("attention_dropout", "dropout", "activation_dropout"),
    "vit": ("attention_probs_dropout_prob", "hidden_dropout_prob"),
}


@pytest.mark.parametrize("one", DROPOUT)
def test_dropout_while_training(one: str) -> None:
    """The loss and its gradients are numbers, the same seed draws the same, and matrices are the weights before dropout."""
    attention, *others = DROPOUT[one]
    architecture = named(one)
    eager, lazy = twins(architecture, **{attention: 0.3}, **dict.fromkeys(others, 0.0))
    given = inputs(architecture)
    labels = torch.zeros(2, dtype=torch.long) if architecture.reads == "image" else given["input_ids"]
    with torch.no_grad():
        wanted = eager(**given, output_attentions=True)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outputs = lazy.train()(**given, labels=labels, output_attentions=True)
        losses.append(float(outputs.loss.detach()))
    assert losses[0] == losses[1] != losses[2]
    outputs.loss.backward()
    grads = [p.grad for p in lazy.parameters() if p.grad is not None]
    assert grads
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    kind = "decoder_attentions" if "decoder_attentions" in wanted else "attentions"
    first = outputs[kind][0]
    assert first.drop.p == 0.3
    assert float((first.to_dense().detach() - wanted[kind][0]).abs().max()) <= NEAR  # later layers read what was dropped


COMPILED = """
import torch
from regard.testing.architectures import LENGTH, inputs, named, twins

torch.set_num_threads(1)
for one in ("llama", "bert"):
    eager, lazy = twins(named(one))
    given = inputs(named(one), "left")
    real = given["attention_mask"].bool()
    compiled = torch.compile(lazy, backend="aot_eager", fullgraph=True)
    more = {} if one == "bert" else {"use_cache": False}
    for length in (LENGTH, LENGTH - 1):
        part = {key: tensor[:, -length:] for key, tensor in given.items()}
        logits = [model(**part, **more).logits[real[:, -length:]] for model in (eager, compiled)]
        for found in logits:
            found.square().mean().backward()
        print(one, length, float((logits[1] - logits[0]).abs().max()))
    far = [float((b.grad - a.grad).abs().max()) for a, b in zip(eager.parameters(), lazy.parameters()) if a.grad is not None]
    print(one, "gradients", max(far))
"""


def test_compiled_models_equal_eager() -> None:
    """In a process of its own: the checks of shapes that the test runner adds cannot be traced."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 6
    assert all(float(line.rpartition(" ")[2]) <= NEAR for line in lines), done.stdout


def test_eager_models_beside_it_are_as_they_were() -> None:
    """Importing regard.transformers watches caches and requests of every model; the others must not notice."""
    eager, _ = twins(named("llama"))
    eager.set_attn_implementation("sdpa")
    fused = eager.generate(**inputs(named("llama"), "left"), max_new_tokens=STEPS, do_sample=False)
    eager.set_attn_implementation("eager")
    outputs = eager.generate(**inputs(named("llama"), "left"), **{**GREEDY, "eos_token_id": EOS})
    assert fused.shape[1] <= LENGTH + STEPS
    assert all(type(W) is torch.Tensor for layers in outputs.attentions for W in layers)


# -- outside ----------------------------------------------------------------------------------------------------------


def classes(model_type: str) -> list[Any]:
    """The classes of the bare models of a type."""
    named = MODEL_MAPPING_NAMES.get(model_type, "ClapAudioModel")
    found = [getattr(transformers, one, None) for one in ((named,) if isinstance(named, str) else named)]
    return [model for model in found if hasattr(model, "_can_set_attn_implementation")]


@pytest.mark.parametrize("outsider", [*OUTSIDERS, *PARTLY])
def test_architectures_outside_are_named(outsider: str) -> None:
    """By their class, without a model: at load, and by set_attn_implementation."""
    (model, *_) = classes(outsider)
    part = "part of its" if outsider in PARTLY else "its"
    sentence = (
        rf"^regard\.transformers: {model.__name__} \(model type {outsider}\) does {part} attention.* outside transformers'"
    )
    with pytest.raises(Unsupported, match=sentence) as refused:
        adapter.requests.refuse_outsider(model, outsider)
    assert 'use attn_implementation="eager".' in str(refused.value)


def test_no_other_class_is_outside() -> None:
    """Every model of transformers is asked; the list in the docs is this one."""
    outside = set()
    for model_type in MODEL_MAPPING_NAMES:
        for model in classes(model_type):
            try:
                adapter.requests.refuse_outsider(model, model_type)
            except Unsupported:
                outside.add(model_type)
    assert outside == {*OUTSIDERS, *PARTLY} - {"clap_audio_model"}


def test_inputs_longer_than_positions() -> None:
    """Models with learned positions stop with PyTorch's own error, with regard as with eager; rotary ones go on."""
    for one in ("gpt2", "bert"):
        for model in twins(named(one)):
            with pytest.raises((IndexError, RuntimeError), match=r"index out of range|expanded size|must match"):
                model(torch.ones(1, 65, dtype=torch.long))
    eager, lazy = twins(named("llama"))
    ids = torch.randint(4, 40, (1, 80), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float((lazy(ids).logits - eager(ids).logits).abs().max()) <= NEAR


TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}


def test_sub_models_may_differ() -> None:
    """A dict of implementations: where it is regard the matrices are lazy, where not they are the library's own."""
    architecture = named("clip")
    eager, lazy = twins(architecture)
    lazy.set_attn_implementation({"": "regard", "text_config": "eager", "vision_config": "regard"})
    given = inputs(architecture)
    with torch.no_grad():
        wanted, found = (model(**given, output_attentions=True) for model in (eager, lazy))
    assert type(found.text_model_output.attentions[0]) is torch.Tensor
    assert isinstance(found.vision_model_output.attentions[0], regard.Attention)
    assert float((found.logits_per_image - wanted.logits_per_image).abs().max()) <= NEAR
    with pytest.raises(Unsupported, match=r'CLIPText\w+ uses attn_implementation="eager"'):
        adapter.require(lazy)
    bloom = transformers.AutoModel.from_config(transformers.BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4))
    with pytest.raises(Unsupported, match="model type bloom"):
        bloom.set_attn_implementation({"": "regard"})
    bloom.set_attn_implementation({})  # nothing was asked
    towers = transformers.LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **TOWER},
        text_config={"model_type": "falcon", **TOWER, "vocab_size": 50},
    )
    composed = transformers.AutoModel.from_config(towers, attn_implementation="eager")
    composed.set_attn_implementation({"vision_config": "regard"})
    for asked in ({"text_config": "regard"}, {"text_config": {"": "regard"}}, "regard"):
        with pytest.raises(Unsupported, match="model type falcon"):
            composed.set_attn_implementation(asked)


def test_output_attentions_in_a_generation_config_is_taken() -> None:
    model = twins(named("llama"))[1]
    model.generation_config.output_attentions = True
    found = model.generate(**inputs(named("llama")), max_new_tokens=2, return_dict_in_generate=True).attentions
    assert isinstance(found[0][0], regard.Attention)


CONFIGURED = {
    "attribute": lambda model, folder: setattr(model.config, "output_attentions", True),
    "from_dict": lambda model, folder: type(model.config).from_dict(
        model.config.to_dict(), output_attentions=True, attn_implementation="regard"
    ),
    "from_pretrained": lambda model, folder: type(model).from_pretrained(
        folder, output_attentions=True, attn_implementation="regard"
    ),
}


@pytest.mark.parametrize("way", CONFIGURED)
def test_output_attentions_in_a_config_says_what_to_do(way: str, tmp_path: Any) -> None:
    model = twins(named("llama"))[1]
    model.save_pretrained(tmp_path)
    with pytest.raises(Unsupported, match=re.escape("pass output_attentions=True in the call")):
        CONFIGURED[way](model, tmp_path)
    assert type(model).from_pretrained(tmp_path, attn_implementation="regard").config._attn_implementation == "regard"


# -- the page ---------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


def test_the_page_has_every_architecture_and_every_outsider() -> None:
    table, outside = PAGE.read_text().split("## Outside")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    assert [(row[0].strip("`"), row[1]) for row in rows] == [(a.name, a.head) for a in ARCHITECTURES]
    for row, architecture in zip(rows, ARCHITECTURES, strict=True):
        assert len(row) == 7
        assert (row[6] != "–") == architecture.generates
        assert all(float(number) <= NEAR for number in row[4:] if number != "–"), row
    known, partly = outside.split("Of these a part")
    assert tuple(re.findall(r"`([\w-]+)`[,.]", known)) == OUTSIDERS
    assert dict(re.findall(r"`([\w-]+)` \((\w+)\)", partly)) == PARTLY


def test_the_page_quotes_the_sentence() -> None:
    (quoted,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with pytest.raises(Unsupported) as refused:
        adapter.requests.refuse_outsider(*classes("bloom"), "bloom")
    assert str(refused.value) == " ".join(quoted.split())
