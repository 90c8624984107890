"""Finds the names in a text: diseases, what people post about, or the slots of a command.

    python -m recipes.entities [--task ncbi_disease|wnut17|snips_slots] [--data DIR] [--smoke] [--resume]

MiniLM fine-tuned for the first two; its vocabulary knows no capitals, so how a word is written comes in as its segment. A
Transformer of three layers from scratch for snips_slots, which in training meets the names of other sentences, too. Of all
tags the likeliest are found in which no name goes on that has not begun.
Hardware: 2 cores. Minutes: ncbi_disease 12 to 52 (beside other work), wnut17 9, snips_slots 26 on one core. To expect, F1 of
whole entities: ncbi_disease 83.4, wnut17 43.8, snips_slots 93.7.
Published: BioBERT 89.7 on ncbi_disease (arXiv 2011.01504), 26.3 to 41.9 in the shared task of wnut17 (Derczynski et al. 2017),
slot-gated BiLSTM 88.8 on snips_slots (Goo et al. 2018).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from seqeval.metrics import f1_score
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import AdamW

from recipes import results
from recipes.classifier import NOTHING, Classifier, shape
from recipes.command import Run, command
from recipes.data import Set, find
from recipes.pictures import shaded
from recipes.text import UNKNOWN, minilm, trained
from recipes.training import Batches, fit, in_order, loader, one_cycle, trainer
from regard.masks import padding
from regard.nn import Bert, TextEncoder, TokenClassifier, rotary
from regard.pretrained import Refused

Sentence = tuple[list[str], list[str]]  # its words, and their tags: B-kind begins a name, I-kind goes on with it, O is none
Task = Literal["ncbi_disease", "wnut17", "snips_slots"]
FILES: dict[str, tuple[str, ...]] = {
    "ncbi_disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
    "snips_slots": ("train", "valid", "test"),
}
SETTINGS: dict[str, dict[str, Any]] = {  # exchanged: how many names in training give way to another one of their kind
    "ncbi_disease": {"epochs": 6, "batch": 16, "rate": 3e-4, "dropout": 0.1, "exchanged": 0.0},
    "wnut17": {"epochs": 8, "batch": 16, "rate": 3e-4, "dropout": 0.1, "exchanged": 0.0},
    "snips_slots": {"epochs": 40, "batch": 64, "rate": 1e-3, "dropout": 0.3, "exchanged": 0.5},
}
WAYS = 4  # in which a word can be written


class Entities(Classifier):
    """A tag for each token, judged by the F1 of whole entities."""

    def __init__(self, body: str, vocabulary: int, tags: list[str], rate: float, dropout: float, dim: int = 192) -> None:
        encoder: torch.nn.Module
        if body == "minilm":
            encoder, dim = Bert.from_pretrained().train(), 384
            encoder.words.requires_grad_(False)  # or the words of the training set would leave those of the test set
            written = encoder.segments.weight.detach()[:1].repeat(WAYS, 1)  # all ways begin as MiniLM's only segment
            encoder.segments = torch.nn.Embedding.from_pretrained(written, freeze=False)
        else:
            encoder = TextEncoder(vocabulary, dim, 4, 3, position=rotary(), dropout=dropout, **shape(dim))
        super().__init__(TokenClassifier(encoder, dim, len(tags), dropout), len(tags), rate)
        self.save_hyperparameters()
        self.body, self.tags = body, tags
        self.follows: Tensor
        self.register_buffer("follows", follows(tags), persistent=False)
        self.found: list[list[str]] = []
        self.wanted: list[list[str]] = []

    def forward(self, tokens: Tensor, lengths: Tensor, written: Tensor, **asked: Any) -> Any:
        segments = {"segments": written} if self.body == "minilm" else {}
        return self.model(tokens, mask=padding(lengths), **segments, **asked)

    def tagged(self, logits: Tensor, labels: Tensor) -> list[list[str]]:
        """The tags of each sentence's words, which stand at their first tokens."""
        rows = zip(logits.float().log_softmax(-1), labels != NOTHING, strict=True)
        return [[self.tags[n] for n in likeliest(row[first], self.follows)] for row, first in rows]

    def validation_step(self, batch: Sequence[Tensor]) -> Tensor:
        labels = batch[-1]
        logits = super().validation_step(batch)
        self.found += self.tagged(logits.unflatten(0, labels.shape), labels)
        self.wanted += [[self.tags[n] for n in row[row != NOTHING].tolist()] for row in labels]
        return logits

    def on_validation_epoch_end(self) -> None:
        self.log("val/F1", f1(self.wanted, self.found), prog_bar=True)
        self.found, self.wanted = [], []

    def configure_optimizers(self) -> Any:
        """A classifier's; what stands on MiniLM begins from nothing, and learns ten times as fast as what is below."""
        model: Any = self.model
        below = [p for p in model.body.parameters() if p.requires_grad]
        rates = [self.rate, self.rate * (10 if self.body == "minilm" else 1)]
        optimizer = AdamW([{"params": p} for p in (below, list(model.output.parameters()))], weight_decay=self.decay)
        return one_cycle(optimizer, rates, self.trainer)


class Tokens:
    """Tokens, lengths, ways of writing and tags of a batch of sentences; a word's tag stands at the first of its tokens."""

    def __init__(
        self, sentences: Sequence[Sentence], tags: Sequence[str], tokenizer: Tokenizer, exchanged: float = 0.0
    ) -> None:
        self.tags, self.tokenizer, self.exchanged = {tag: n for n, tag in enumerate(tags)}, tokenizer, exchanged
        self.sentences: list[Sentence] = []
        self.lengths: list[int] = []
        self.names: dict[str, list[list[str]]] = {}
        for (words, wanted), found in zip(sentences, self.encoded(sentences), strict=True):
            there = set(found.word_ids)  # a lone variation selector, say, has no token
            sentence = [word if n in there else UNKNOWN for n, word in enumerate(words)], wanted
            self.sentences.append(sentence)
            self.lengths.append(len(found.ids))
            for kind, name in parts(sentence):
                self.names.setdefault(kind, []).append(name)

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, picked: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sentences = [self.sentences[n] for n in picked]
        if self.exchanged:
            chance = random.Random(sum(picked))  # that of the batch, which seed and epoch have drawn
            sentences = [exchanged(sentence, self.names, self.exchanged, chance) for sentence in sentences]
        tokens, labels, written = [], [], []
        for found, (words, wanted) in zip(self.encoded(sentences), sentences, strict=True):
            at, tags = found.word_ids, [self.tags.get(tag, self.tags["O"]) for tag in wanted]
            first = [w if w != before else None for before, w in zip([None, *at[:-1]], at, strict=True)]
            tokens.append(torch.tensor(found.ids))
            labels.append(torch.tensor([NOTHING if w is None else tags[w] for w in first]))
            written.append(torch.tensor([0 if w is None else way(words[w]) for w in at]))
        lengths = torch.tensor([len(x) for x in tokens])
        given = pad_sequence(tokens, batch_first=True), lengths, pad_sequence(written, batch_first=True)
        return *given, pad_sequence(labels, batch_first=True, padding_value=NOTHING)

    def encoded(self, sentences: Sequence[Sentence]) -> list[Encoding]:
        """What the tokenizer makes of the words."""
        return self.tokenizer.encode_batch([words for words, _ in sentences], is_pretokenized=True)


def way(word: str) -> int:
    """How a word is written: 0 without capitals, 1 with a first one, 2 with nothing else, 3 with some among other letters."""
    if word == word.lower():
        return 0
    return 2 if word == word.upper() and len(word) > 1 else 1 if word[1:] == word[1:].lower() else 3


def parts(sentence: Sentence) -> Iterator[tuple[str, list[str]]]:
    """The kind and the words of each name, and, of kind "", all that stands between them."""
    kind = ""
    name: list[str] = []
    for word, tag in zip(*sentence, strict=True):
        if name and (tag[2:] != kind or tag.startswith("B-")):
            yield kind, name
            name = []
        kind = tag[2:]
        name.append(word)
    yield kind, name


def exchanged(sentence: Sentence, names: Mapping[str, Sequence[list[str]]], share: float, chance: random.Random) -> Sentence:
    """A sentence in which some names are other ones of the same kind."""
    words: list[str] = []
    tags: list[str] = []
    for kind, own in parts(sentence):
        name = chance.choice(names[kind]) if kind and chance.random() < share else own
        words += name
        tags += [f"{'I' if n else 'B'}-{kind}" if kind else "O" for n in range(len(name))]
    return words, tags


def follows(tags: Sequence[str]) -> Tensor:
    """0 where a tag may follow another, (tags + 1, tags), -inf where a name would go on without; the last row is the start."""
    return torch.tensor([[0.0 if b[:2] != "I-" or a[2:] == b[2:] else -torch.inf for b in tags] for a in [*tags, "O"]])


def likeliest(scores: Tensor, follows: Tensor) -> list[int]:
    """The tags of greatest sum, of a score for each word and tag, (words, tags), and what may follow what (Viterbi 1967)."""
    total, came = scores[0] + follows[-1], []
    for row in scores[1:]:
        best = (total[:, None] + follows[:-1]).max(0)
        came.append(best.indices.tolist())
        total = best.values + row
    path = [int(total.argmax())]
    for before in reversed(came):
        path.append(before[path[-1]])
    return path[::-1]


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
    known = Tokens(train, tags, tokenizer, settings["exchanged"])
    held_out, asked = (Tokens(part, tags, tokenizer) for part in (val, test))

    batch, epochs = (8, 2) if run.smoke else (settings["batch"], settings["epochs"])
    lightning = trainer(run, name, epochs, "val/F1", "max", gradient_clip_val=1.0, precision="bf16-mixed")
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
    """What the first word of the first name attends to in the last layer, separators left out, of each kind of name in turn."""
    turns: Counter[str] = Counter()
    order, usual = [], sorted(asked.lengths)[len(asked) // 2]
    for n, tags in enumerate(found):
        first = next((w for w, tag in enumerate(tags) if tag != "O"), 0)
        if asked.lengths[n] <= usual:  # the longer half is hard to look at
            order.append((tags[first] == "O", turns[tags[first]], n, first))
            turns[tags[first]] += 1
    for _, _, n, first in sorted(order)[:6]:
        [read] = asked.encoded(asked.sentences[n : n + 1])
        *given, _ = asked[[n]]
        A = module(*given, return_attention=True)[1][-1]
        words = [at for at, word in enumerate(read.word_ids) if word is not None]
        title = f"{asked.sentences[n][0][first][:24]}: {found[n][first]}"
        yield title, [read.tokens[at] for at in words], A[0, :, read.word_ids.index(first)].mean(0)[words]


if __name__ == "__main__":
    command(main)
