"""Sound as a sequence of spectra: how loud each pitch is, hundred times a second."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regard.masks import Mask, padding
from regard.nn import checks
from regard.nn.encoder import Encoder
from regard.nn.pooling import there

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options
    from regard.nn.positions import Position


def log_mel(
    waveform: Tensor,
    rate: int,
    *,
    mels: int = 80,
    window: float = 0.025,
    hop: float = 0.010,
    low: float = 0.0,
    high: float | None = None,
) -> Tensor:
    """ln of the power in each of `mels` bands of pitch, (…, samples) → (…, 1 + ⌊samples / ⌊rate · hop⌉⌋ frames, mels).

        ln max(10⁻¹⁰, Σ_f M_fm |X_tf|²),    X_t = the Fourier transform of a Hann window around sample t · rate · hop

    Band m is a triangle over the frequencies, 1 at its centre and 0 at those of its neighbours, which stand evenly on the mel
    scale, 2595 log10(1 + f / 700 Hz), from low to high. The waveform goes on with zeros at both ends, so that zeros appended to
    one change none of its frames. The transform is as long as the window, rounded up to a power of two, and further until
    each band holds a frequency.

    Args:
        waveform: numbers, (samples,) or (…, samples). rate: of samples per second.
        window: in seconds. hop: from one frame to the next, in seconds. low, high: in Hz; high None = rate / 2.

    Raises:
        TypeError: a waveform of whole numbers. ShapeError: one without samples. ValueError: a window below two samples, pitches
            outside 0 … rate / 2, bands so narrow that they hold no frequency.

    Sources: Davis and Mermelstein 1980, "Comparison of Parametric Representations for Monosyllabic Word Recognition in
    Continuously Spoken Sentences"; the scale is O'Shaughnessy's (1987).

    >>> log_mel(torch.randn(2, 8000), 8000, mels=40).shape
    torch.Size([2, 101, 40])
    """
    checks.sizes("log_mel", rate=rate, mels=mels)
    high = rate / 2 if high is None else high
    span, step = checks.frames(waveform, rate, window, hop, low, high)
    size = 2 ** math.ceil(math.log2(span))
    most = 16 * size
    while not bool(((bands := mel_bands(rate, size, mels, low, high)) > 0).any(0).all()):
        size *= 2
        checks.bands(size, most, mels, low, high)
    hann = torch.hann_window(span, dtype=waveform.dtype, device=waveform.device)
    flat = waveform.reshape(-1, waveform.shape[-1])
    spectrum = torch.stft(flat, size, step, span, hann, center=True, pad_mode="constant", return_complex=True)
    power = spectrum.abs().square().mT @ bands.to(waveform)
    return power.clamp(min=1e-10).log().reshape(*waveform.shape[:-1], *power.shape[1:])


def mel_bands(rate: int, size: int, mels: int, low: float, high: float) -> Tensor:
    """M, (size / 2 + 1, mels) in float64: triangles over the frequencies of a Fourier transform of that size.

    >>> mel_bands(8000, 256, 20, 0.0, 4000.0).shape
    torch.Size([129, 20])
    """
    first, last = (2595 * math.log10(1 + f / 700) for f in (low, high))
    corners = 700 * (10 ** (torch.linspace(first, last, mels + 2, dtype=torch.float64) / 2595) - 1)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    f = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None] * (rate / size)
    return torch.minimum((f - left) / (centre - left), (right - f) / (right - centre)).clamp(min=0)


class Frames(nn.Module):
    """Embeds frames of sound by two convolutions over three frames each, which also make them fewer.

        x ← gelu(conv(x)),    twice; ⌈n / stride⌉ frames come out of n

    Frames that the mask hides are silent before each convolution: padding changes nothing.

    Args:
        mels: how many numbers a frame has. dim: the size of an embedding. strides: of the two convolutions.

    Raises:
        ShapeError: x that is not (batch, n, mels). Unsupported: a mask that says more than which frames there are.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".

    >>> frames = Frames(40, 16)
    >>> x, mask = torch.randn(2, 9, 40), regard.masks.padding([9, 5])
    >>> frames(x, mask=mask).shape, frames.mask_of_outputs(x, mask).to_dense(1, 5, batch=2).sum(-1).flatten()
    (torch.Size([2, 5, 16]), tensor([5, 3]))
    """

    def __init__(
        self,
        mels: int,
        dim: int,
        *,
        strides: tuple[int, int] = (1, 2),
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.sizes("Frames", mels=mels, dim=dim)
        self.mels, self.strides = mels, checks.pair("Frames", "strides", strides)
        self.conv1 = nn.Conv1d(mels, dim, 3, self.strides[0], padding=1, device=device, dtype=dtype)
        self.conv2 = nn.Conv1d(dim, dim, 3, self.strides[1], padding=1, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, mask: Mask | None = None) -> Tensor:
        """(batch, n, mels) → (batch, ⌈⌈n / stride⌉ / stride⌉, dim); mask: which frames there are, such as padding(lengths)."""
        checks.embeddings("Frames", "x", x, self.mels, least=3)
        keep = there("Frames", mask, x)
        x = x.mT
        for conv, stride in zip((self.conv1, self.conv2), self.strides, strict=True):
            x = F.gelu(conv(x if keep is None else x.masked_fill(~keep[:, None], 0)))
            keep = None if keep is None else keep[:, ::stride]
        return x.mT

    def mask_of_outputs(self, x: Tensor, mask: Mask | None) -> Mask | None:
        """Which frames there are afterwards: those whose middle one there was."""
        keep = there("Frames", mask, x)
        return None if keep is None else padding(keep=keep[:, :: self.strides[0]][:, :: self.strides[1]])

    def extra_repr(self) -> str:
        return f"mels={self.mels}, strides={self.strides}"


class AudioEncoder(nn.Module):
    """Frames of sound to contextualised embeddings: `Frames`, then an `Encoder`, as in Whisper.

    A classifier is SequenceClassifier(AudioEncoder(…), dim, classes, pool="mean").

    Args:
        mels: how many numbers a frame has. dim, heads, layers: of the encoder. strides: of the two convolutions.
        position: where frames stand, such as `sinusoidal()`; None = nowhere.
        dropout: of frames, before positions are added to them, and of the encoder's layers.
        final_norm, options: those of `Encoder`.

    Raises:
        ShapeError: x that is not (batch, n, mels); also whatever `Frames` and `Encoder` raise.

    Source: Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision".

    >>> model = AudioEncoder(40, 16, heads=4, layers=2, position=regard.nn.sinusoidal())
    >>> y, attentions = model(torch.randn(2, 9, 40), mask=regard.masks.padding([9, 5]), return_attention=True)
    >>> y.shape, attentions[0].shape
    (torch.Size([2, 5, 16]), torch.Size([2, 4, 5, 5]))
    """

    def __init__(
        self,
        mels: int,
        dim: int,
        heads: int,
        layers: int,
        *,
        strides: tuple[int, int] = (1, 2),
        position: Position | None = None,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.frames = Frames(mels, dim, strides=strides, **made)
        self.dropout = nn.Dropout(checks.dropout("AudioEncoder", options.get("dropout", 0.0)))
        self.encoder = Encoder(dim, heads, layers, position=position, final_norm=final_norm, **options)

    def forward(self, x: Tensor, *, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """(batch, n, mels) → (batch, ⌈⌈n / stride⌉ / stride⌉, dim); with return_attention also the matrices of all layers.

        mask: which frames of x there are, such as padding(lengths); None = all.
        """
        y = self.dropout(self.frames(x, mask=mask))
        return self.encoder(y, mask=self.mask_of_outputs(x, mask), return_attention=return_attention)

    def mask_of_outputs(self, x: Tensor, mask: Mask | None) -> Mask | None:
        """Which of the embeddings there are, as `forward` makes them of x and mask."""
        return self.frames.mask_of_outputs(x, mask)
