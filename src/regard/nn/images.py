"""Images as sequences of patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.biases import Bias
from regard.masks import Mask
from regard.nn import checks
from regard.nn.encoder import Encoder
from regard.nn.positions import Position, learned

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from regard.nn.block import Options

Size = int | tuple[int, int]


class Patches(nn.Module):
    """Cuts images into patches, row by row, and embeds each: x = W patch + b, a convolution whose stride is its size.

    Args:
        channels: of an image; 1 is grey, 3 is colour. dim: the size of an embedding.
        patch: how many pixels a patch is high and wide, one number or (rows, columns).

    Raises:
        ShapeError: images that are not (batch, channels, height, width), or that patches do not fill. TypeError: images that
            are no floats.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale".

    >>> Patches(3, 16, patch=4)(torch.randn(2, 3, 8, 12)).shape
    torch.Size([2, 6, 16])
    """

    def __init__(
        self,
        channels: int,
        dim: int,
        patch: Size,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.sizes("Patches", channels=channels, dim=dim)
        self.channels, self.patch = channels, checks.pair("Patches", "patch", patch)
        self.projection = nn.Conv2d(channels, dim, self.patch, self.patch, device=device, dtype=dtype)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, patches, dim)."""
        checks.images("Patches", images, self.channels)
        self.grid(images.shape[-2:])
        return self.projection(images).flatten(2).mT

    def grid(self, size: Size | torch.Size) -> tuple[int, int]:
        """How many rows and columns of patches an image of (height, width) has.

        >>> Patches(1, 16, patch=4).grid((28, 28))
        (7, 7)
        """
        return checks.patches("Patches", checks.pair("Patches", "size", size), self.patch)


class ImageEncoder(nn.Module):
    """The Vision Transformer's body: patches behind a class token, then an `Encoder`.

    A classifier is SequenceClassifier(ImageEncoder(…), dim, classes), which takes the class token.

    Args:
        size: of the images in pixels, one number or (height, width). patch: of a patch; it divides size.
        channels: of an image. dim, heads, layers: of the encoder.
        position: where patches stand, such as rotary(grid=(7, 7)); None = a learned table, as in the paper. The class token
            stands outside: positions begin with the first patch, but in the distances of alibi and relative ones.
        class_token: whether there is one; without it, pool="mean" classifies.
        dropout: of the encoder's layers, and of patches, before positions are added to them.
        final_norm, options: those of `Encoder`; the paper's has norm_first=True, activation="gelu".

    Raises:
        ShapeError: a patch that does not divide size, images of another size. What `Patches` and `Encoder` do.

    Source: Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale".

    >>> model = ImageEncoder(28, 4, 1, 16, heads=4, layers=2)
    >>> y, attentions = model(torch.randn(2, 1, 28, 28), return_attention=True)
    >>> y.shape, model.on_grid(attentions[-1][:, :, 0]).shape  # where the class token looks
    (torch.Size([2, 50, 16]), torch.Size([2, 4, 7, 7]))
    """

    def __init__(
        self,
        size: Size,
        patch: Size,
        channels: int,
        dim: int,
        heads: int,
        layers: int,
        *,
        position: Position | None = None,
        class_token: bool = True,
        final_norm: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {name: options.get(name) for name in ("device", "dtype")}
        self.patches = Patches(channels, dim, patch, **made)
        self.size = checks.pair("ImageEncoder", "size", size)
        self.grid = self.patches.grid(self.size)
        if position is None:
            position = learned(self.grid[0] * self.grid[1], dim, **made)
        self.dropout = nn.Dropout(checks.dropout("ImageEncoder", options.get("dropout", 0.0)))
        self.class_token = nn.Parameter(torch.zeros(dim, **made)) if class_token else None
        self.encoder = Encoder(
            dim, heads, layers, position=Behind(position) if class_token else position, final_norm=final_norm, **options
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal numbers of deviation 0.02 for the class token."""
        if self.class_token is not None:
            nn.init.normal_(self.class_token, std=0.02)

    def forward(self, images: Tensor, *, mask: Mask | None = None, return_attention: bool = False) -> Any:
        """(batch, channels, height, width) → (batch, tokens, dim), the class token first, then the patches row by row.

        With return_attention also a tuple of matrices (batch, heads, tokens, tokens), one for each layer.
        mask: who may meet among all tokens, one of `regard.masks`; None = everyone.
        """
        checks.images("ImageEncoder", images, self.patches.channels, self.size)
        x = self.dropout(self.patches(images))
        if self.class_token is not None:
            x = torch.cat((self.class_token.expand(len(x), 1, -1), x), 1)
        return self.encoder(x, mask=mask, return_attention=return_attention)

    def on_grid(self, numbers: Tensor) -> Tensor:
        """Numbers of tokens, (…, tokens) or (…, patches), laid over the picture: (…, rows, columns), without the class token.

        Numbers of pixels: torch.nn.functional.interpolate(model.on_grid(numbers), model.size).
        """
        return checks.on_picture("ImageEncoder", numbers, self.grid, self.class_token is not None).unflatten(-1, self.grid)

    def extra_repr(self) -> str:
        return f"size={self.size}, grid={self.grid}, class_token={self.class_token is not None}"


class Behind(Position):
    """Positions that begin behind a first token, which has none."""

    def __init__(self, position: Position) -> None:
        super().__init__()
        self.position = position

    def forward(self, x: Tensor, offset: int = 0) -> Tensor:
        return torch.cat((x[..., :1, :], self.position(x[..., 1:, :])), -2)

    def turn(self, x: Tensor, offset: int = 0) -> Tensor:
        return torch.cat((x[..., :1, :], self.position.turn(x[..., 1:, :])), -2)

    def bias(self) -> Bias | None:
        return self.position.bias()
