"""The moving average of the weights: timm's ModelEmaV3 in a callback of ours.

Lightning's own average swaps initial weights in before a late start, knows no warm-up, and stores the average as the
checkpoint's weights. Here both are kept: weights in the checkpoint, average beside them, both restored on resume. The
released code does not restore it; ``ema.on_resume=restart`` begins anew from the resumed weights, as it does.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV3
from torch import nn

from cmtvision.engine.distributed.fsdp import is_sharded, load_whole_state, local, shard_network, whole_state
from cmtvision.recipe import EmaSection


class EmaCallback(pl.Callback):
    """Averages the network after each optimiser step; ``network`` is what evaluation and the artefact use."""

    def __init__(self, model: nn.Module, section: EmaSection) -> None:
        self.ema = ModelEmaV3(model, decay=section.decay, use_warmup=section.warmup)
        self._on_resume = section.on_resume
        self._step = 0
        self._restart = False

    @property
    def network(self) -> nn.Module:
        """The averaged network, in eval mode; with fsdp each process holds a share (see ``TrainingModule.whole``)."""
        module: nn.Module = self.ema.module
        return module

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Follow the network to its device, and over the processes."""
        if is_sharded(pl_module) and pl_module.device_mesh is not None:
            shard_network(self.network, pl_module.device_mesh["data_parallel"])
        self.ema.to(pl_module.device)

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Begin a new average where a resumed run asks for it."""
        if self._restart:
            self.ema.set(pl_module.model)
            self._restart = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Average once for each optimiser step, not for each accumulated batch."""
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            if is_sharded(self.network):
                self._update_shares(pl_module.model)
            else:
                self.ema.update(pl_module.model, step=self._step)

    def distance(self, model: nn.Module) -> float:
        """How far the average is from the weights: |weights - average| / |weights| over all parameters."""
        with torch.no_grad():
            pairs = list(zip(map(local, model.parameters()), map(local, self.network.parameters()), strict=True))
            apart = torch.stack([(own - mean).float().square().sum() for own, mean in pairs]).sum()
            size = torch.stack([own.float().square().sum() for own, _ in pairs]).sum()
            if is_sharded(self.network):
                dist.all_reduce(apart)
                dist.all_reduce(size)
        return float((apart / size).sqrt())

    def state_dict(self) -> dict[str, Any]:
        """The average and the step it belongs to."""
        return {"step": self._step, "weights": whole_state(self.network, first_only=True)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on averaging where the saved run stood, or begin anew."""
        self._step = state_dict["step"]
        self._restart = self._on_resume == "restart"
        if not self._restart:
            load_whole_state(self.network, state_dict["weights"])

    def _update_shares(self, model: nn.Module) -> None:
        """timm's update on the shares: its own, of all tensors at once, does not take shares and buffers together."""
        weight = 1.0 - self.ema.get_decay(self._step)
        means, owns = self.network.state_dict().values(), model.state_dict().values()
        pairs = [(local(mean), local(own)) for mean, own in zip(means, owns, strict=True)]
        floating = [(mean, own) for mean, own in pairs if mean.is_floating_point()]
        with torch.no_grad():
            torch._foreach_lerp_([mean for mean, _ in floating], [own for _, own in floating], weight=weight)
            for mean, own in pairs:
                if not mean.is_floating_point():
                    mean.copy_(own)
