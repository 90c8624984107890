"""Layers and models made of attention that can be looked at: each hands out its lazy matrix,
`layer(x, return_attention=True)`.

They are `torch.nn.Module`s, take batch-first embeddings (batch, n, dim), and values of `regard.masks`: True = may
attend.
"""

from regard.nn.attention import CrossAttention, SelfAttention
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.bert import Bert
from regard.nn.block import gated
from regard.nn.cache import Cache
from regard.nn.decoder import Decoder, DecoderLayer, LayerAttention, LayerCache
from regard.nn.encoder import Encoder, EncoderLayer
from regard.nn.gpt import GPT
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.multihead import MultiheadAttention
from regard.nn.positions import Position, alibi, dynamic, learned, linear, llama3, relative, rotary, sinusoidal, yarn
from regard.nn.recurrent import RecurrentSequenceToSequence, WordByWord
from regard.nn.sampling import sample
from regard.nn.scores import Additive, Bilinear
from regard.nn.searches import Found, beam_search, greedy
from regard.nn.transformer import Transformer, TransformerAttention

__all__ = [
    "GPT",
    "Additive",
    "BahdanauSequenceToSequence",
    "Bert",
    "Bilinear",
    "Cache",
    "CrossAttention",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "Found",
    "LayerAttention",
    "LayerCache",
    "LuongSequenceToSequence",
    "MultiheadAttention",
    "Position",
    "RecurrentSequenceToSequence",
    "SelfAttention",
    "Transformer",
    "TransformerAttention",
    "WordByWord",
    "alibi",
    "beam_search",
    "dynamic",
    "gated",
    "greedy",
    "learned",
    "linear",
    "llama3",
    "relative",
    "rotary",
    "sample",
    "sinusoidal",
    "yarn",
]
