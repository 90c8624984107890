"""What all recipes share that learn classes: how they are trained and judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from recipes.training import one_cycle
from regard.pretrained import Refused

NOTHING = -100  # the label of what is not asked, such as padding


def shape(dim: int) -> dict[str, Any]:
    """Of all layers that learn from scratch here."""
    return {"hidden": 2 * dim, "activation": "gelu", "norm_first": True}


class Classifier(L.LightningModule):
    """A model of which class each example, or each token, is of, and its optimiser.

    Smoothed labels (Szegedy et al. 2016); AdamW, whose rate warms up and falls again (Smith and Topin 2019).
    A batch is what the model takes, and the labels.
    """

    def __init__(self, model: nn.Module, classes: int, rate: float, decay: float = 0.01, smoothing: float = 0.1) -> None:
        super().__init__()
        if classes < 2:
            raise Refused("there is but one class: nothing to learn.")
        self.model, self.rate, self.decay, self.smoothing = model, rate, decay, smoothing
        self.accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=NOTHING)

    def forward(self, *given: Any, **asked: Any) -> Any:
        """Logits, (…, classes)."""
        return self.model(*given, **asked)

    def surprise(self, batch: Sequence[Tensor], smoothing: float) -> tuple[Tensor, Tensor]:
        """The mean of -ln p of the labels, and the logits."""
        *given, labels = batch
        logits = self(*given).flatten(0, -2)
        return F.cross_entropy(logits, labels.flatten(), ignore_index=NOTHING, label_smoothing=smoothing), logits

    def training_step(self, batch: Sequence[Tensor]) -> Tensor:
        loss, _ = self.surprise(batch, self.smoothing)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Sequence[Tensor]) -> Tensor:
        loss, logits = self.surprise(batch, 0.0)
        self.accuracy(logits, batch[-1].flatten())
        self.log("val/loss", loss, batch_size=len(batch[-1]))
        self.log("val/accuracy", self.accuracy, prog_bar=True)
        return logits

    @torch.no_grad()
    def answers(self, examples: DataLoader[Any]) -> list[int]:
        """The likeliest class of each example, in order."""
        self.eval()
        return [n for *given, _ in examples for n in self(*(x.to(self.device) for x in given)).argmax(-1).tolist()]

    def configure_optimizers(self) -> Any:
        queries = [p for name, p in self.named_parameters() if name.endswith("pool.query")]
        others = [p for name, p in self.named_parameters() if not name.endswith("pool.query")]
        # A learned query begins at 0, and its products are divided by √dim, 16 or so: at the others' rate it would stay there.
        groups = [{"params": others, "weight_decay": self.decay}, {"params": queries, "weight_decay": 0.0}][: 1 + bool(queries)]
        rates = [self.rate, 16 * self.rate][: len(groups)]
        return one_cycle(torch.optim.AdamW(groups, lr=self.rate), rates, self.trainer)
