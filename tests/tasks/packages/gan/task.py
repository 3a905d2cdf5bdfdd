"""A generator and a discriminator, as in Lightning's page on manual optimization."""

from __future__ import annotations

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class GAN(pl.LightningModule):
    def __init__(self, width: int, lr: float) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.lr = lr
        self.generator = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(), nn.Linear(width, 1))

    def sample(self, number: int) -> Tensor:
        return self.generator(torch.randn(number, 4, device=self.device))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        g_opt, d_opt = self.optimizers()
        one, zero = torch.ones(len(batch), 1), torch.zeros(len(batch), 1)
        loss = nn.functional.binary_cross_entropy_with_logits

        made = self.sample(len(batch))
        d_loss = loss(self.discriminator(batch), one) + loss(self.discriminator(made.detach()), zero)
        d_opt.zero_grad()
        self.manual_backward(d_loss)
        d_opt.step()

        g_loss = loss(self.discriminator(made), one)
        g_opt.zero_grad()
        self.manual_backward(g_loss)
        g_opt.step()
        self.log_dict({"g_loss": g_loss, "d_loss": d_loss}, prog_bar=True)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_distance", self._distance(batch))

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_distance", self._distance(batch))

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list]:
        g_opt = torch.optim.Adam(self.generator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        d_opt = torch.optim.Adam(self.discriminator.parameters(), lr=self.lr, betas=(0.5, 0.999))
        return [g_opt, d_opt], []

    def _distance(self, real_N2: Tensor) -> Tensor:
        made_N2 = self.sample(len(real_N2))
        return (real_N2.mean(0) - made_N2.mean(0)).norm() + (real_N2.T.cov() - made_N2.T.cov()).norm()
