"""Which digit is said? Spectra of speech through a convolution and a Transformer, on the free-spoken-digit-dataset.

    python -m recipes.speech [--data DIR] [--smoke] [--resume]

3,000 recordings of six people. Seven trainings: on the official split (the first five recordings of each digit and speaker
are the test), and, leaving each speaker out in turn, on five speakers, tested on the sixth, whom the model has never heard.
Hardware: 2 cores. Minutes: 21 on one core. To expect: accuracy 100.0, of speakers never heard 76.6 (61.8 to 90.2).
Published, official split or random ones: CNNs 97 to 99.3.
"""

from __future__ import annotations

import io
import os
import re
import wave
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from recipes import results
from recipes.classifier import Classifier, shape
from recipes.command import Run, command
from recipes.data import Set, find
from recipes.pictures import spectra
from recipes.training import Batches, fit, in_order, loader, trainer
from regard.masks import padding
from regard.nn import AudioEncoder, SequenceClassifier, log_mel, sinusoidal
from regard.pretrained import Refused

RATE, MELS = 8000, 40


@dataclass(frozen=True)
class Recording:
    """Spectra (frames, MELS), the digit that is said, by whom, and which of 50 times."""

    frames: Tensor
    digit: int
    speaker: str
    index: int


class Speech(Classifier):
    """An audio encoder, pooled by a learned query."""

    def __init__(self, dim: int, layers: int, dropout: float, rate: float) -> None:
        told: dict[str, Any] = {"position": sinusoidal(), "dropout": dropout, **shape(dim)}
        encoder = AudioEncoder(MELS, dim, 4, layers, strides=(2, 2), **told)
        super().__init__(SequenceClassifier(encoder, dim, 10, "attention", dropout), 10, rate, decay=0.05)
        self.save_hyperparameters()

    def forward(self, frames: Tensor, lengths: Tensor, **asked: Any) -> Any:
        return self.model(frames, mask=padding(lengths), **asked)


class Recordings:
    """Spectra, how many there are, and digits of a batch; `varied` by chance, where they are for training."""

    def __init__(self, recordings: Sequence[Recording], varied: bool = False) -> None:
        self.recordings, self.varied = recordings, varied
        self.lengths = [len(recording.frames) for recording in recordings]

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, picked: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        frames = [self.recordings[n].frames for n in picked]
        if self.varied:
            chance = torch.Generator().manual_seed(sum(picked))  # that of the batch, which seed and epoch have drawn
            frames = [silenced(silenced(spoken(x, chance).mT, chance, 8).mT, chance, 8) for x in frames]
        digits = torch.tensor([self.recordings[n].digit for n in picked])
        return pad_sequence(frames, batch_first=True), torch.tensor([len(x) for x in frames]), digits


def drawn(low: int, high: int, chance: torch.Generator) -> int:
    """A whole number, both ends among them."""
    return int(torch.randint(low, high + 1, (), generator=chance))


def spoken(x: Tensor, chance: torch.Generator) -> Tensor:
    """A recording as somebody else would say it: up to an eighth faster or slower, up to a band higher or lower, later."""
    long, up, late = (drawn(low, high, chance) for low, high in ((len(x) * 7 // 8, len(x) * 9 // 8), (-1, 1), (0, 4)))
    x = F.interpolate(x.mT[None], max(long, 1), mode="linear")[0].mT
    bands = (torch.arange(MELS) - up).clamp(0, MELS - 1)
    return torch.cat((x[:1].expand(late, -1), x))[:, bands]


def silenced(x: Tensor, chance: torch.Generator, most: int) -> Tensor:
    """A stretch of up to so many rows set to 0, which is the mean (Park et al. 2019)."""
    long = drawn(0, min(most, len(x) // 3), chance)
    start = drawn(0, len(x) - long, chance)
    rows = torch.arange(len(x))
    return x.masked_fill(((rows >= start) & (rows < start + long))[:, None], 0.0)


def recordings(files: Set) -> list[Recording]:
    """All recordings, digit_speaker_index.wav in a zip file, as spectra of mean 0 and deviation 1."""

    def recording(name: str) -> Recording:
        named = re.fullmatch(r"(\d)_(\w+)_(\d+)\.wav", name.rsplit("/", 1)[-1])
        if named is None:
            raise ValueError(f"{name} is not named digit_speaker_index.wav")
        try:
            with wave.open(io.BytesIO(archive.read(name))) as sound:
                told = (sound.getframerate(), sound.getsampwidth(), sound.getnchannels())
                samples = torch.frombuffer(bytearray(sound.readframes(sound.getnframes())), dtype=torch.int16)
        except (wave.Error, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{name} is no WAV file ({error})") from error
        if told != (RATE, 2, 1) or not len(samples):
            raise ValueError(f"{name} has {told[0]} samples a second of {told[1]} bytes, {told[2]} channels; not 8000, 2, 1")
        if not samples.any():
            raise ValueError(f"{name} is silent")
        frames = log_mel(samples.float() / 2**15, RATE, mels=MELS)
        return Recording((frames - frames.mean()) / frames.std(), int(named[1]), named[2], int(named[3]))

    path = files.file("recordings.zip")
    if not zipfile.is_zipfile(path):
        raise Refused(f"{str(path)!r} is no whole zip file: download it again.")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".wav"))
        return list(files.parsed("recordings.zip", enumerate(names, 1), recording, "recording"))


def learned(run: Run, name: str, train: Sequence[Recording], test: Sequence[Recording]) -> tuple[float, float, Speech]:
    """Accuracy, minutes and the model."""
    known = Recordings([r for r in train if r.index % 10 != 5], varied=True)
    held_out, asked = (Recordings(part) for part in ([r for r in train if r.index % 10 == 5], test))
    epochs, batch = (2, 20) if run.smoke else (40, 32)
    lightning = trainer(run, name, epochs, "val/loss", gradient_clip_val=1.0)
    module = Speech(**({"dim": 32, "layers": 1} if run.smoke else {"dim": 128, "layers": 3}), dropout=0.1, rate=1e-3)
    batches = loader(known, Batches(known.lengths, batch, run.seed))
    minutes = fit(run, lightning, module, batches, in_order(held_out))
    right = [found == r.digit for found, r in zip(module.answers(in_order(asked)), test, strict=True)]
    return 100 * sum(right) / len(right), minutes, module


def main(run: Run) -> None:
    name = "speech"
    said = recordings(find(run, "fsdd"))
    if run.smoke:
        said = [r for r in said if r.digit < 3 and r.index < 20]
    official = [r for r in said if r.index >= 5], [r for r in said if r.index < 5]
    accuracy, minutes, module = learned(run, name, *official)
    unheard = {}
    for speaker in sorted({r.speaker for r in said})[: 1 if run.smoke else None]:
        apart = [r for r in said if r.speaker != speaker], [r for r in said if r.speaker == speaker]
        unheard[speaker], more, _ = learned(run, f"{name}-without-{speaker}", *apart)
        minutes += more
    if int(os.environ.get("RANK", "0")):  # under torchrun, one process writes
        return
    scores = {"accuracy": accuracy, "accuracy, a speaker it never heard": sum(unheard.values()) / len(unheard)}
    results.write(run, name, scores, minutes, unheard=unheard)

    shown = [next(r for r in official[1] if r.digit == digit) for digit in sorted({r.digit for r in said})]
    when = []
    for n in range(len(shown)):
        frames, lengths, _ = Recordings(shown)[[n]]
        A = module(frames, lengths, return_attention=True)[1].body[-1]
        when.append(A.sum(-2)[0].mean(0))  # what each moment received, of all heads
    spectra(run.results(name) / f"{name}.png", [r.frames for r in shown], when, [f"{r.digit}, {r.speaker}" for r in shown])


if __name__ == "__main__":
    command(main)
