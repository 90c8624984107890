"""Contextualised embeddings: what a word means where it stands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from regard import checks

if TYPE_CHECKING:
    from regard.pretrained import Pretrained, Tokens

__all__ = ["embed"]


@torch.no_grad()
def embed(sentences: str | Sequence[str], word: str | None = None, *, model: str | Path | Pretrained | None = None) -> Tensor:
    """The embeddings of a word in each sentence, (sentences, dim): the mean of the last layer over the word's tokens.

    The same word has another embedding in each sentence, because attention has mixed in what stands around it. Without a word
    it is the sentence's embedding, the mean over all tokens, as all-MiniLM-L6-v2 was trained to be compared; lengths are not
    normalised.

    Args:
        sentences: one or several.
        word: a whole word or several in a row; its first occurrence counts, whatever the case of its letters.
        model: a name on the Hugging Face Hub, a directory, or what `regard.pretrained.load` gave; None = the packaged
            all-MiniLM-L6-v2.

    Raises:
        ValueError: a sentence without the word, a model in training mode. Refused: a model that cannot be had, a text that is
            too long.

    Source: Peters et al. 2018, "Deep Contextualized Word Representations".

    >>> found = regard.embed(["time flies like an arrow", "fruit flies like a banana"], word="flies")
    >>> found.shape
    torch.Size([2, 384])
    """
    from regard import pretrained

    sentences = [sentences] if isinstance(sentences, str) else list(sentences)
    checks.sentences("embed", sentences)
    spans = [None if word is None else _place(sentence, word) for sentence in sentences]
    loaded: Any = model if isinstance(model, pretrained.Pretrained) else pretrained.load(model)
    checks.evaluated("embed", loaded.model.training)
    found = []
    for sentence, span in zip(sentences, spans, strict=True):
        tokens = pretrained.tokenize(loaded, sentence)
        ids = torch.tensor([tokens.ids], device=next(loaded.model.parameters()).device)
        last = loaded.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
        places = _tokens_of(tokens, span)
        if not places:
            raise ValueError(f"embed: the word {word!r} must have a token; the tokenizer drops it from {tokens.text!r}.")
        found.append(last[places].mean(0))
    return torch.stack(found)


def _place(sentence: str, word: str) -> tuple[int, int]:
    """Where a word stands: its first and last character."""
    match = None if not word.strip() else re.search(rf"(?<!\w){re.escape(word)}(?![\w+#])", sentence, re.IGNORECASE)
    if match is None:
        raise ValueError(f"embed: the word {word!r} must stand in every sentence; it is not in {sentence!r}.")
    return match.span()


def _tokens_of(tokens: Tokens, span: tuple[int, int] | None) -> list[int]:
    """Which tokens lie in a part of the text; None = all, separators too."""
    if span is None:
        return list(range(len(tokens.ids)))
    return [n for n, (begin, end) in enumerate(tokens.spans) if begin < span[1] and end > span[0]]
