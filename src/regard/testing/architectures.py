"""Tiny random models of Hugging Face's architectures, twice: with eager attention and with regard.

>>> from regard.testing import architectures
>>> eager, lazy = architectures.twins(architectures.named("llama"))
>>> eager.config._attn_implementation, lazy.config._attn_implementation
('eager', 'regard')
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from torch import Tensor

import regard.transformers  # noqa: F401  it registers "regard"

LENGTH, PADDED, BATCH, WORDS = 9, 4, 2, 50
EOS = 2

# One size of everything, by whatever name a configuration has for it.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim", "embed_dim"), 32),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "hidden_dim", "ffn_dim"), 48),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "depth", "num_experts", "num_local_experts", "n_group"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "patch_size", "n_routed_experts"), 4),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_target_positions"), 64),
    **dict.fromkeys(("head_dim", "d_kv", "num_mel_bins", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("num_experts_per_tok", "n_shared_experts", "topk_group", "first_k_dense_replace"), 1),
    **dict.fromkeys(("image_size", "projection_dim", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    "vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": EOS, "decoder_start_token_id": 1,
    "mask_token_id": 3, "num_key_value_heads": 2, "sliding_window": 5, "local_attention": 4, "global_attn_every_n_layers": 2,
    "num_channels": 3, "rotary_dim": 4, "max_source_positions": 16, "token_dropout": False, "type_vocab_size": 2,
    "conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2), "num_feat_extract_layers": 2,
    "initializer_range": 0.2, "init_std": 0.2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "forced_eos_token_id": None,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model type, the head that gives logits, what of its configuration differs, and what it reads."""

    name: str
    head: str  # AutoModelFor…
    reads: str = "text"  # or image, audio, spectrum, text and image
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def generates(self) -> bool:
        """Whether it has generate() of text."""
        return self.head in ("CausalLM", "Seq2SeqLM", "SpeechSeq2Seq", "ImageTextToText")

    @property
    def sides(self) -> tuple[str, ...]:
        """Where it takes padding. Blocks of keys that hold padding compete in MiniMax M3 with those that hold words."""
        if self.reads not in ("text", "text and image", "words and image"):
            return ("none",)
        return ("none", "right") if "index_block_size" in self.changes else ("none", "left", "right")


HYBRID = {"layer_types": ["sliding_attention", "full_attention"]}
LATENT = {"num_key_value_heads": 4, "n_routed_experts": 4, "num_local_experts": 4}
INDEXED = {**LATENT, "index_topk": 3, "index_n_heads": 2, "index_head_dim": 16}
BLOCKS = {
    "layer_types": ["full_attention", "minimax_m3_sparse"], "index_n_heads": 2, "index_head_dim": 8, "index_block_size": 2,
    "index_topk_blocks": 2,
}  # fmt: skip
IMAGE_TOKEN = 40  # in compositions, a word that stands for one patch

_VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8, "num_channels": 3, "initializer_range": 0.2,
}  # fmt: skip


def _composed(vision: str, language: str, **more: Any) -> dict[str, Any]:
    """A vision tower of four patches beside a language model."""
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "initializer_range", "eos_token_id")
    text = {name: SIZES[name] for name in same}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "model_type": language}
    words = {"image_token_index": IMAGE_TOKEN, "image_token_id": IMAGE_TOKEN}
    return {"vision_config": {**_VISION, "model_type": vision}, "text_config": text | more.pop("text", {}), **words, **more}


LLAVA = _composed("clip_vision_model", "llama", vision_feature_layer=-1)
PALIGEMMA = _composed("siglip_vision_model", "gemma", projection_dim=32)
GEMMA3 = _composed(
    "siglip_vision_model",
    "gemma3_text",
    mm_tokens_per_image=4,
    text={"sliding_window": 5, "layer_types": HYBRID["layer_types"]},
)

_MASKED = """bert roberta xlm-roberta camembert albert distilbert electra modernbert esm ernie data2vec-text
    roberta-prelayernorm nomic_bert"""
_CAUSAL = """gpt2 gpt_neox opt llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe gemma phi phi3 cohere cohere2 olmo olmo2
    olmoe granite stablelm starcoder2 nemotron smollm3 glm glm4 biogpt exaone4 lfm2 vaultgemma deepseek_v4"""
_SEQ2SEQ = "t5 umt5 t5gemma switch_transformers bart mbart marian pegasus blenderbot m2m_100 nllb-moe"
_IMAGES = "vit dinov2 beit ijepa"
_SOUNDS = "wav2vec2 wav2vec2-conformer hubert data2vec-audio unispeech"

ARCHITECTURES: tuple[Architecture, ...] = (
    *(Architecture(name, "MaskedLM") for name in _MASKED.split()),
    *(Architecture(name, "CausalLM") for name in _CAUSAL.split()),
    *(Architecture(name, "CausalLM", changes=HYBRID) for name in ("gemma2", "gemma3_text", "gpt_oss")),
    Architecture("deepseek_v3", "CausalLM", changes=LATENT),
    Architecture("deepseek_v32", "CausalLM", changes=INDEXED),
    Architecture("glm_moe_dsa", "CausalLM", changes=INDEXED),
    Architecture("minimax_m3_vl_text", "CausalLM", changes=BLOCKS),
    Architecture("llama4_text", "CausalLM", changes={"attention_chunk_size": 9}),
    *(Architecture(name, "Seq2SeqLM") for name in _SEQ2SEQ.split()),
    Architecture("mt5", "Seq2SeqLM", changes={"initializer_factor": 0.5}),  # its logits would be far larger than others'
    *(Architecture(name, "ImageClassification", "image") for name in _IMAGES.split()),
    Architecture("deit", "ImageClassification", "image", {"architectures": ["DeiTForImageClassification"]}),
    Architecture("whisper", "SpeechSeq2Seq", "spectrum"),
    *(Architecture(name, "CTC", "audio") for name in _SOUNDS.split()),
    Architecture("audio-spectrogram-transformer", "AudioClassification", "patches", {"max_length": 16, "num_mel_bins": 16}),
    Architecture("llava", "ImageTextToText", "words and image", LLAVA),
    Architecture("paligemma", "ImageTextToText", "words and image", PALIGEMMA),
    Architecture("gemma3", "ImageTextToText", "words and image", GEMMA3),
    Architecture("clip", "ZeroShotImageClassification", "text and image"),
    Architecture("siglip", "ZeroShotImageClassification", "text and image"),
)

# Model types whose attention transformers lets nobody replace; those of which it lets a part are in transformers/requests.py.
_OUTSIDERS = """
    autoformer bark big_bird blip bloom bros canine clvp codegen convbert cpmant cvt dab-detr data2vec-vision deberta
    deberta-v2 dinat donut-swin falcon fastspeech2_conformer fastspeech2_conformer_with_hifigan flaubert flava fsmt funnel
    glpn got_ocr2 gpt_neo gpt_neox_japanese gptj granite_speech granite_speech_plus grounding-dino groupvit hiera ibert
    imagegpt layoutlmv2 layoutlmv3 led levit lilt longformer luke lxmert mask2former maskformer-swin megatron-bert mgp-str
    mm-grounding-dino mobilevit mobilevitv2 mpnet mpt mra mvp nystromformer omdet-turbo oneformer openai-gpt perceiver
    prophetnet pvt pvt_v2 reformer rembert roformer rwkv seggpt sew-d speecht5 squeezebert swiftformer swin2sr swinv2
    table-transformer tapas timesformer tvp vilt visual_bert vitdet vits wavlm xglm xlm xlnet yoso
"""
OUTSIDERS = tuple(_OUTSIDERS.split())


def named(name: str) -> Architecture:
    """The architecture of that model type."""
    return next(architecture for architecture in ARCHITECTURES if architecture.name == name)


def config(architecture: Architecture) -> Any:
    """A tiny configuration: its sizes are those of `SIZES` that it knows."""
    kind = transformers.CONFIG_MAPPING[architecture.name]
    default = kind()

    def fitting(of: Any) -> dict[str, Any]:
        return {name: size for name, size in SIZES.items() if hasattr(of, name)}

    parts = {part: fitting(getattr(default, part)) for part in kind.sub_configs if getattr(default, part, None) is not None}
    return kind(**{**fitting(default), **parts, **architecture.changes})


def twins(architecture: Architecture, **changes: Any) -> tuple[Any, Any]:
    """The same random model with eager attention and with regard, in float32 and for inference."""
    made = []
    auto = getattr(transformers, f"AutoModelFor{architecture.head}")
    for implementation in ("eager", "regard"):
        torch.manual_seed(7)
        tiny = copy.deepcopy(config(architecture))
        for key, value in changes.items():
            setattr(tiny, key, value)
        made.append(auto.from_config(tiny, attn_implementation=implementation, dtype=torch.float32).eval())
    with torch.no_grad():
        for parameter in made[0].parameters():
            if not parameter.any():  # biases and class tokens that begin at 0 would hide an error
                parameter.normal_(0, 0.1)
    made[1].load_state_dict(made[0].state_dict())
    return made[0], made[1]


def inputs(architecture: Architecture, padded: str = "none") -> dict[str, Tensor]:
    """Two inputs; of texts the second has padding on that side: left, right, none."""
    torch.manual_seed(3)
    words = torch.randint(4, IMAGE_TOKEN, (BATCH, LENGTH))
    keep = torch.ones_like(words)
    if padded != "none":
        keep[1, slice(0, PADDED) if padded == "left" else slice(LENGTH - PADDED, None)] = 0
    words[torch.arange(BATCH), keep.cumsum(-1).argmax(-1)] = WORDS - 1  # the last one, which some models pool at
    words = words.masked_fill(keep == 0, 0)
    images = {"pixel_values": torch.randn(BATCH, 3, 16, 16)}
    if architecture.reads == "words and image":
        first = PADDED if padded == "left" else 0
        words[:, first : first + 4] = IMAGE_TOKEN
    if architecture.reads == "image":
        return images
    if architecture.reads == "audio":
        return {"input_values": torch.randn(BATCH, 100)}
    if architecture.reads == "patches":
        return {"input_values": torch.randn(BATCH, 16, 16)}
    if architecture.reads == "spectrum":
        return {"input_features": torch.randn(BATCH, 8, 32), "decoder_input_ids": words.clamp(min=4)}
    text = {"input_ids": words, "attention_mask": keep}
    if architecture.head == "Seq2SeqLM":
        return {**text, "decoder_input_ids": words.clamp(min=4)}
    return {**text, **images} if "image" in architecture.reads else text
