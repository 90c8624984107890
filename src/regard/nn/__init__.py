"""Layers and models made of attention that can be looked at: each hands out its lazy matrix,
`layer(x, return_attention=True)`.

They are `torch.nn.Module`s, take batch-first embeddings (batch, n, dim), and values of `regard.masks`: True = may
attend.
"""

from regard.nn.attention import CrossAttention, SelfAttention
from regard.nn.audio import AudioEncoder, Frames, log_mel
from regard.nn.bahdanau import BahdanauSequenceToSequence
from regard.nn.bert import Bert
from regard.nn.block import gated
from regard.nn.cache import Cache
from regard.nn.decoder import Decoder, DecoderLayer, LayerAttention, LayerCache
from regard.nn.encoder import Encoder, EncoderLayer
from regard.nn.gpt import GPT
from regard.nn.heads import ClassifierAttention, SequenceClassifier, TokenClassifier
from regard.nn.images import ImageEncoder, Patches
from regard.nn.luong import LuongSequenceToSequence
from regard.nn.multihead import MultiheadAttention
from regard.nn.pooling import AttentionPooling, FirstToken, Mean
from regard.nn.positions import Position, alibi, dynamic, learned, linear, llama3, relative, rotary, sinusoidal, yarn
from regard.nn.recurrent import RecurrentSequenceToSequence, WordByWord
from regard.nn.sampling import sample
from regard.nn.scores import Additive, Bilinear
from regard.nn.searches import Found, beam_search, greedy
from regard.nn.text import LanguageModel, TextEncoder, TokenEmbedding
from regard.nn.transformer import Transformer, TransformerAttention
from regard.nn.translation import SequenceToSequence

__all__ = [
    "GPT",
    "Additive",
    "AttentionPooling",
    "AudioEncoder",
    "BahdanauSequenceToSequence",
    "Bert",
    "Bilinear",
    "Cache",
    "ClassifierAttention",
    "CrossAttention",
    "Decoder",
    "DecoderLayer",
    "Encoder",
    "EncoderLayer",
    "FirstToken",
    "Found",
    "Frames",
    "ImageEncoder",
    "LanguageModel",
    "LayerAttention",
    "LayerCache",
    "LuongSequenceToSequence",
    "Mean",
    "MultiheadAttention",
    "Patches",
    "Position",
    "RecurrentSequenceToSequence",
    "SelfAttention",
    "SequenceClassifier",
    "SequenceToSequence",
    "TextEncoder",
    "TokenClassifier",
    "TokenEmbedding",
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
    "log_mel",
    "relative",
    "rotary",
    "sample",
    "sinusoidal",
    "yarn",
]
