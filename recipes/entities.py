"""Finds the names in a text: diseases, what people post about, or the slots of a command.

    python -m recipes.entities [--task ncbi_disease|wnut17|snips_slots] [--data DIR] [--smoke] [--resume]

MiniLM fine-tuned for the first two, a Transformer of three layers from scratch for snips_slots.
Hardware: 2 cores. Minutes: ncbi_disease , wnut17 , snips_slots . To expect, F1 of whole entities: ncbi_disease , wnut17 ,
snips_slots .
Published: BioBERT 89.7 on ncbi_disease (arXiv 2011.01504), 26.3 to 41.9 in the shared task of wnut17 (Derczynski et al. 2017),
slot-gated BiLSTM 88.8 on snips_slots (Goo et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from seqeval.metrics import f1_score
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from recipes import results
from recipes.classifier import NOTHING, Classifier
from recipes.command import Run, command
from recipes.data import Set, find
from recipes.pictures import shaded
from recipes.text import minilm, trained
from recipes.training import Batches, fit, in_order, loader, trainer
from regard.masks import padding
from regard.nn import Bert, TextEncoder, TokenClassifier, sinusoidal
from regard.pretrained import Refused

Sentence = tuple[list[str], list[str]]  # its words, and their tags: B-kind begins a name, I-kind goes on with it, O is none
Task = Literal["ncbi_disease", "wnut17", "snips_slots"]
FILES: dict[str, tuple[str, ...]] = {
    "ncbi_disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
    "snips_slots": ("train", "valid", "test"),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "ncbi_disease": {"epochs": 6, "batch": 32, "rate": 3e-4, "dropout": 0.1},
    "wnut17": {"epochs": 6, "batch": 32, "rate": 3e-4, "dropout": 0.1},
    "snips_slots": {"epochs": 25, "batch": 64, "rate": 1e-3, "dropout": 0.3},
}


class Entities(Classifier):
    """A tag for each token, judged by the F1 of whole entities."""

    def __init__(self, body: str, vocabulary: int, tags: list[str], rate: float, dropout: float, dim: int = 192) -> None:
        encoder: torch.nn.Module
        if body == "minilm":
            encoder, dim = Bert.from_pretrained().train(), 384
        else:
            options: dict[str, Any] = {
                "position": sinusoidal(),
                "hidden": 2 * dim,
                "activation": "gelu",
                "norm_first": True,
                "dropout": dropout,
            }
            encoder = TextEncoder(vocabulary, dim, 4, 3, **options)
        super().__init__(TokenClassifier(encoder, dim, len(tags), dropout), len(tags), rate)
        self.save_hyperparameters()
        self.tags = tags
        self.found: list[list[str]] = []
        self.wanted: list[list[str]] = []

    def forward(self, tokens: Tensor, lengths: Tensor, **asked: Any) -> Any:
        return self.model(tokens, mask=padding(lengths), **asked)

    def tagged(self, logits: Tensor, labels: Tensor) -> list[list[str]]:
        """The tags of each sentence's words, which stand at their first tokens."""
        rows = zip(logits.argmax(-1), labels != NOTHING, strict=True)
        return [[self.tags[n] for n in row[asked].tolist()] for row, asked in rows]

    def validation_step(self, batch: Sequence[Tensor]) -> Tensor:
        labels = batch[-1]
        logits = super().validation_step(batch)
        self.found += self.tagged(logits.unflatten(0, labels.shape), labels)
        self.wanted += [[self.tags[n] for n in row[row != NOTHING].tolist()] for row in labels]
        return logits

    def on_validation_epoch_end(self) -> None:
        self.log("val/F1", f1(self.wanted, self.found), prog_bar=True)
        self.found, self.wanted = [], []


class Tokens:
    """Tokens, lengths and tags of a batch of sentences; a word's tag stands at the first of its tokens."""

    def __init__(self, sentences: Sequence[Sentence], tags: Sequence[str], tokenizer: Tokenizer) -> None:
        known = {tag: n for n, tag in enumerate(tags)}
        self.encoded = tokenizer.encode_batch([words for words, _ in sentences], is_pretokenized=True)
        self.labels = []
        for found, (_, wanted) in zip(self.encoded, sentences, strict=True):
            firsts = [w if w is not None and w != before else None for before, w in pairs_of(found.word_ids)]
            self.labels.append(torch.tensor([NOTHING if w is None else known.get(wanted[w], known["O"]) for w in firsts]))
        self.lengths = [len(found.ids) for found in self.encoded]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, picked: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        tokens = pad_sequence([torch.tensor(self.encoded[n].ids) for n in picked], batch_first=True)
        labels = pad_sequence([self.labels[n] for n in picked], batch_first=True, padding_value=NOTHING)
        return tokens, torch.tensor([self.lengths[n] for n in picked]), labels


def pairs_of(words: Sequence[int | None]) -> Iterator[tuple[int | None, int | None]]:
    """The word before each token, and its own."""
    return zip([None, *words[:-1]], words, strict=True)


def columns(files: Set, name: str) -> list[Sentence]:
    """Sentences of a file with a word and its tag in each line, and an empty line between sentences."""

    def word(line: str) -> list[str]:
        parts = line.split("\t")
        if line.strip() and (len(parts) != 2 or not parts[0] or not tag(parts[1].strip())):
            raise ValueError("not a word, a tab and a tag (O, B-kind or I-kind)")
        return [part.strip() for part in parts] if line.strip() else []

    numbered = ((n, line) for n, line in enumerate(files.lines(name), 1))
    return list(sentences(files.parsed(name, numbered, word)))


def sentences(lines: Iterable[list[str]]) -> Iterator[Sentence]:
    """Words and tags between empty lines."""
    words: list[str] = []
    tags: list[str] = []
    for line in [*lines, []]:
        if line:
            words.append(line[0])
            tags.append(line[1])
        elif words:
            yield words, tags
            words, tags = [], []


def slots(files: Set, part: str) -> list[Sentence]:
    """Sentences of SNIPS: words in one file, their tags in the same line of another one."""

    def sentence(lines: tuple[str, str]) -> Sentence:
        words, tags = (line.split() for line in lines)
        if len(words) != len(tags) or not words or not all(map(tag, tags)):
            raise ValueError(f"{len(words)} words and {len(tags)} tags (O, B-kind or I-kind)")
        return words, tags

    words, tags = (files.lines(f"{part}/seq.{side}") for side in ("in", "out"))
    if len(words) != len(tags):
        raise Refused(f"{str(files.file(f'{part}/seq.in'))!r} has {len(words)} lines, and seq.out beside it {len(tags)}.")
    return list(files.parsed(f"{part}/seq.in", enumerate(zip(words, tags, strict=True), 1), sentence))


def tag(text: str) -> bool:
    """Whether a text is a tag."""
    return text == "O" or (text[:2] in ("B-", "I-") and len(text) > 2)


def f1(wanted: list[list[str]], found: list[list[str]]) -> float:
    """F1 of whole entities, in percent: begin, end and kind have to be right (CoNLL's measure)."""
    return 100 * float(f1_score(wanted, found, zero_division=0))


def main(run: Run, task: Task = "ncbi_disease") -> None:
    name, settings = f"entities-{task}", SETTINGS[task]
    files, body = find(run, task), "scratch" if task == "snips_slots" else "minilm"
    train, val, test = ((slots if task == "snips_slots" else columns)(files, part) for part in FILES[task])
    if run.smoke:
        train, val, test = train[:48], val[:8], test[:8]
    tags = sorted({tag for _, tags in train for tag in tags})
    tokenizer = trained((" ".join(words) for words, _ in train), 4000, lowercase=True) if body == "scratch" else minilm()
    known, held_out, asked = (Tokens(part, tags, tokenizer) for part in (train, val, test))

    batch, epochs = (8, 2) if run.smoke else (settings["batch"], settings["epochs"])
    lightning = trainer(run, name, epochs, "val/F1", "max", gradient_clip_val=1.0)
    module = Entities(body, tokenizer.get_vocab_size(), tags, settings["rate"], settings["dropout"])
    batches = loader(known, Batches(known.lengths, batch, run.seed))
    minutes = fit(run, lightning, module, batches, in_order(held_out))
    if not lightning.is_global_zero:
        return

    module.eval()
    with torch.no_grad():
        found = [tags for *given, labels in in_order(asked) for tags in module.tagged(module(*given), labels)]
    results.write(run, name, {"F1": f1([tags for _, tags in test], found)}, minutes)
    shaded(run.results(name) / f"{name}.png", list(looks(module, asked, found)))


def looks(module: Entities, asked: Tokens, found: list[list[str]]) -> Iterator[tuple[str, list[str], Tensor]]:
    """What the first word of the first name attends to in the last layer, separators left out; the shortest sentences."""
    named = [n for n, tags in enumerate(found) if set(tags) != {"O"}] or range(len(found))
    for n in sorted(named, key=asked.lengths.__getitem__)[:12]:
        read, first = asked.encoded[n], next((w for w, tag in enumerate(found[n]) if tag != "O"), 0)
        tokens, lengths, _ = asked[[n]]
        A = module(tokens, lengths, return_attention=True)[1][-1]
        words = [at for at, word in enumerate(read.word_ids) if word is not None]
        yield found[n][first], [read.tokens[at] for at in words], A[0, :, read.word_ids.index(first)].mean(0)[words]


if __name__ == "__main__":
    command(main)
