"""Translates German into English: from one state, with Bahdanau's attention, or with a Transformer.

    python -m recipes.translate [--model recurrent|bahdanau|transformer] [--data DIR] [--smoke] [--resume]
    python -m recipes.translate [--model …] --translate "Zwei Kinder helfen einem alten Mann."

Multi30k, 29,000 captions of photographs, whose licence is for non-commercial research: nothing of it is kept here. One
vocabulary of 6,000 subwords for both languages; a beam of five.
Hardware: 2 cores. Minutes: recurrent 38 on one core, bahdanau 48, transformer 47. To expect, BLEU of lower-cased tokens on
test2016: recurrent 19.4, bahdanau 37.5, transformer 38.9; of the longest third of the sentences 16.8, 36.2, 37.1. Published, of
whole words and without a beam: 20.6, 28.3, 36.5 (github.com/bentrevett/pytorch-seq2seq).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import torch
import typer
from sacrebleu.metrics.bleu import BLEU
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from recipes import results
from recipes.command import Run, command
from recipes.data import Set, find
from recipes.pictures import curves, heatmaps
from recipes.text import trained
from recipes.training import Batches, fit, in_order, loader, one_cycle, read, trainer
from regard.masks import padding
from regard.nn import BahdanauSequenceToSequence, RecurrentSequenceToSequence, SequenceToSequence, beam_search, sinusoidal
from regard.pretrained import Refused
from regard.record.files import write_whole

Pair = tuple[str, str]  # German, English
Kind = Literal["recurrent", "bahdanau", "transformer"]
PADDING, BEGIN, END = 0, 1, 2  # tokens
SENTENCE = "Zwei Kinder helfen einem alten Mann."
SETTINGS: dict[str, dict[str, Any]] = {
    "recurrent": {"epochs": 12, "rate": 1e-3, "dim": 256, "hidden": 512, "dropout": 0.4},
    "bahdanau": {"epochs": 12, "rate": 1e-3, "dim": 256, "hidden": 512, "dropout": 0.4},
    "transformer": {"epochs": 18, "rate": 1e-3, "dim": 256, "hidden": 512, "dropout": 0.25},
}


class Translation(L.LightningModule):
    """One of the three models, and its optimiser: Adam, warming up and down again; smoothed labels (Szegedy et al. 2016)."""

    def __init__(self, kind: Kind, vocabulary: int, dim: int, hidden: int, dropout: float, rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate = rate
        self.model: Any
        if kind == "transformer":
            options: dict[str, Any] = {"position": sinusoidal(), "hidden": hidden, "norm_first": True, "dropout": dropout}
            self.model = SequenceToSequence(vocabulary, None, dim, 4, 3, **options)
        else:
            recurrent = RecurrentSequenceToSequence if kind == "recurrent" else BahdanauSequenceToSequence
            self.model = recurrent(vocabulary, vocabulary, dim, hidden, dropout=dropout)
        self.loss = nn.CrossEntropyLoss(ignore_index=PADDING, label_smoothing=0.1)
        self.surprise = nn.CrossEntropyLoss(ignore_index=PADDING)

    def logits(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What is expected after every token of the English, (tokens, vocabulary), and what comes, (tokens,)."""
        source, lengths, target = batch
        return self.model(source, target[:, :-1], padding(lengths)).flatten(0, 1).float(), target[:, 1:].flatten()

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        loss: Tensor = self.loss(*self.logits(batch))
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        words = int((batch[2][:, 1:] != PADDING).sum())
        self.log("val/loss", self.surprise(*self.logits(batch)), prog_bar=True, batch_size=words)

    def predict_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> list[list[int]]:
        source, lengths, _ = batch
        mask, limit = padding(lengths), 2 * source.shape[1] + 10
        found = beam_search(self.model, source, mask=mask, begin=BEGIN, end=END, limit=limit, beams=5)
        return [row[:n] for row, n in zip(found.tokens.tolist(), found.lengths.tolist(), strict=True)]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.rate, betas=(0.9, 0.98))
        return one_cycle(optimizer, self.rate, self.trainer)


class Pairs:
    """German tokens, how many, and English ones between BEGIN and END, of a batch of pairs."""

    def __init__(self, pairs: Sequence[Pair], tokenizer: Tokenizer) -> None:
        german, english = (tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1))
        self.source = [torch.tensor(found.ids or [END]) for found in german]
        self.target = [torch.tensor([BEGIN, *found.ids, END]) for found in english]
        self.lengths = [(len(target), len(source)) for target, source in zip(self.target, self.source, strict=True)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, picked: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        source, target = [self.source[n] for n in picked], [self.target[n] for n in picked]
        lengths = torch.tensor([len(tokens) for tokens in source])
        return pad_sequence(source, batch_first=True), lengths, pad_sequence(target, batch_first=True)


def pairs(files: Set, part: str) -> list[Pair]:
    """The pairs of a part, line by line."""

    def pair(lines: Pair) -> Pair:
        if not all(line.strip() for line in lines):
            raise ValueError("no German or no English")
        return lines

    german, english = (files.lines(f"{part}.{language}.gz") for language in ("de", "en"))
    if len(german) != len(english):
        raise Refused(
            f"{str(files.file(f'{part}.de.gz'))!r} has {len(german)} lines, and {part}.en.gz beside it {len(english)}."
        )
    return list(files.parsed(f"{part}.de.gz", enumerate(zip(german, english, strict=True), 1), pair))


def translated(module: Translation, tokenizer: Tokenizer, sentence: str, picture: Path) -> str:
    """A translation and, below it, which German word each English one looked at; the picture has all weights."""
    if not sentence.strip():
        raise Refused("there is nothing to translate.")
    batch = Pairs([(sentence, "")], tokenizer)[[0]]
    tokens = module.predict_step(batch)[0]
    written = tokenizer.decode(tokens)
    if module.hparams["kind"] == "recurrent":
        return f"{written}\n(a model that decodes from one state has no alignment)"
    target = torch.tensor([[BEGIN, *tokens[:-1]]])
    _, attention = module.model(batch[0], target, padding(batch[1]), return_attention=True)
    A = attention if module.hparams["kind"] == "bahdanau" else attention.decoder[-2].memory  # the last layer looks elsewhere
    weights = A.to_dense()[0].mean(0)  # of all heads
    german, across = words(tokenizer, batch[0][0].tolist())
    english, down = words(tokenizer, tokens)
    weights = down.mT / down.sum(0)[:, None] @ weights @ across  # a word receives what its pieces do
    heatmaps(picture, [weights], [written], english, german)
    best = weights.max(-1)
    width = max(len(word) for word in english)
    lines = [f"{e:>{width}} ← {german[j]} {p:.2f}" for e, j, p in zip(english, best.indices, best.values, strict=True)]
    return "\n".join([written, *lines])


def words(tokenizer: Tokenizer, tokens: list[int]) -> tuple[list[str], Tensor]:
    """The words that tokens make up, and which of them each token is part of, (tokens, words) of 0 and 1."""
    found: list[str] = []
    part = []
    for token in tokens:
        piece = tokenizer.id_to_token(token) or ""
        if not found or piece.startswith("▁") or not piece.isalnum() or not found[-1].isalnum():
            found.append("")
        found[-1] += piece.removeprefix("▁")
        part.append(len(found) - 1)
    return [word if word != "[END]" else "end" for word in found], nn.functional.one_hot(torch.tensor(part)).float()


def scores(found: Sequence[str], test: Sequence[Pair]) -> tuple[dict[str, float], dict[str, Any]]:
    """BLEU as it is, of lower-cased tokens as in the published figures, and by length; with signatures."""
    plain, lower = BLEU(), BLEU(lowercase=True)

    def bleu(metric: BLEU, which: Sequence[int]) -> float:
        return metric.corpus_score([found[n] for n in which], [[test[n][1] for n in which]]).score

    order = sorted(range(len(test)), key=lambda n: len(test[n][0].split()))
    fifths = [order[n * len(order) // 5 : (n + 1) * len(order) // 5] for n in range(5)]
    lengths = [[len(test[n][0].split()) for n in fifth] for fifth in fifths]
    by_length = {f"{at[0]}–{at[-1]}": bleu(lower, fifth) for at, fifth in zip(lengths, fifths, strict=True)}
    figures = {
        "BLEU, lower-cased": bleu(lower, order),
        "BLEU, plain": bleu(plain, order),
        "BLEU, lower-cased, longest third": bleu(lower, order[len(order) * 2 // 3 :]),
    }
    signatures = {"lower-cased": str(lower.get_signature()), "plain": str(plain.get_signature())}
    return figures, {"signatures": signatures, "BLEU by words of the German": by_length}


def by_length(folder: Path) -> None:
    """The curves of all models that have results."""
    lines: dict[str, dict[str, float]] = {}
    for kind in SETTINGS:
        if (file := folder / f"translate-{kind}.json").is_file():
            lines[kind] = json.loads(file.read_text())["BLEU by words of the German"]
    ticks = list(next(iter(lines.values())))
    curves(
        folder / "translate-lengths.png", {k: list(v.values()) for k, v in lines.items()}, ticks, "words of the German", "BLEU"
    )


def main(
    run: Run,
    model: Kind = "transformer",
    translate: Annotated[str | None, typer.Option(help="a German sentence, for a model that has been trained")] = None,
) -> None:
    name, settings = f"translate-{model}", dict(SETTINGS[model])
    vocabulary, batch, epochs = (300, 20, 2) if run.smoke else (6000, 128, settings["epochs"])
    del settings["epochs"]
    settings |= {"dim": 32, "hidden": 32} if run.smoke else {}
    file, best = run.folder(name) / "tokenizer.json", run.folder(name) / "best.ckpt"
    if translate is not None:
        if not file.is_file():
            raise Refused(f"there is no {str(file)!r}: train first.")
        tokenizer = Tokenizer.from_file(str(file))
        module = Translation(model, tokenizer.get_vocab_size(), **settings)
        module.load_state_dict(read(best, module)["state_dict"])
        picture = run.folder(name) / "alignment.png"
        print(translated(module.eval(), tokenizer, translate, picture))
        return

    files = find(run, "multi30k")
    train, val, test = (pairs(files, part) for part in ("train", "val", "test_2016_flickr"))
    if run.smoke:
        train, val, test = train[:200], val[:40], test[:20]
    tokenizer = trained((sentence for pair in train for sentence in pair), vocabulary)
    write_whole(file, tokenizer.to_str().encode())
    known, held_out, asked = (Pairs(part, tokenizer) for part in (train, val, test))

    lightning = trainer(run, name, epochs, "val/loss", patience=4, gradient_clip_val=1.0, precision="bf16-mixed")
    module = Translation(model, tokenizer.get_vocab_size(), **settings)
    batches = loader(known, Batches(known.lengths, batch, run.seed))
    minutes = fit(run, lightning, module, batches, in_order(held_out, 50))
    if not lightning.is_global_zero:
        return

    module.eval()
    found = [tokenizer.decode(tokens) for part in in_order(asked, 50) for tokens in module.predict_step(part)]
    figures, more = scores(found, test)
    results.write(run, name, figures, minutes, **more)
    by_length(run.results(name))
    print(translated(module, tokenizer, SENTENCE, run.results(name) / f"{name}.png"))


if __name__ == "__main__":
    command(main)
