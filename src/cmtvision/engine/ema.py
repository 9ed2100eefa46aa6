"""The moving average of the weights: timm's ModelEmaV3 in a callback of ours.

Lightning's own average swaps initial weights in before a late start, knows no warm-up, and stores the average as the
checkpoint's weights. Here both are kept: weights in the checkpoint, average beside them, both restored on resume.
"""

from typing import Any

import pytorch_lightning as pl
from timm.utils import ModelEmaV3
from torch import nn

from cmtvision.recipe import EmaSection


class EmaCallback(pl.Callback):
    """Averages the network after each optimiser step; ``network`` is what evaluation and the artefact use."""

    def __init__(self, model: nn.Module, section: EmaSection) -> None:
        self.ema = ModelEmaV3(model, decay=section.decay, use_warmup=section.warmup)
        self._step = 0

    @property
    def network(self) -> nn.Module:
        """The averaged network, in eval mode."""
        module: nn.Module = self.ema.module
        return module

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the network to its device."""
        self.ema.to(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average once for each optimiser step, not for each accumulated batch."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.ema.update(pl_module.model, step=self._step)

    def state_dict(self) -> dict[str, Any]:
        """The average and the step it belongs to."""
        return {"step": self._step, "weights": self.ema.module.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on averaging where the saved run stood."""
        self._step = state_dict["step"]
        self.ema.module.load_state_dict(state_dict["weights"])
