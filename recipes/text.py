"""Subwords: a vocabulary that is trained on the spot, and what its tokens look like."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from regard.nn.weights import directory

PADDING, BEGIN, END, UNKNOWN = SPECIAL = ["[PAD]", "[BEGIN]", "[END]", "[UNK]"]


def trained(texts: Iterable[str], vocabulary: int, *, lowercase: bool = False) -> Tokenizer:
    """Byte pair encoding (Sennrich et al. 2016) of words; ▁ stands where a word begins. PADDING is 0, BEGIN 1, END 2."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.Metaspace()
    told = trainers.BpeTrainer(vocab_size=vocabulary, min_frequency=2, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(texts, told)
    return tokenizer


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """The tokens of a text as they stand in it; what a tokenizer adds, by its own name."""
    found = tokenizer.encode(text)
    return [text[a:b].strip() or token for (a, b), token in zip(found.offsets, found.tokens, strict=True)]


def minilm() -> Tokenizer:
    """The tokenizer of the packaged MiniLM."""
    tokenizer = Tokenizer.from_file(str(directory(None) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
