"""The text as batches of tokens.

Legend: N windows of a split, B of a batch, T tokens of a window, K different tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import runengine
from runengine import UserError

Batch = tuple[Tensor, Tensor]  # tokens_BT, and the token after each; int64
NOTHING = -1  # in the place of a token after the end of the text


@dataclass(eq=False)
class TextData(pl.LightningDataModule):
    """Reads what `prepare` wrote, and cuts it into windows: each token but the first is to be predicted once."""

    folder: Path  # holds the tokens of the three splits and split.json
    num_tokens: int  # K
    context: int  # T: no prediction looks back farther
    batch_size: int  # windows a step, over all devices together; each takes its share
    seed: int  # of the order of the training windows, together with the epoch

    def __post_init__(self) -> None:
        super().__init__()
        self.folder = Path(self.folder)
        self.splits: dict[str, Tensor] = {}
        if self.context < 1:
            raise ValueError(f"data.context must be >= 1, got {self.context}.")

    def setup(self, stage: str) -> None:
        """Read the splits that this stage needs, each once."""
        for name in ("train", "val") if stage in ("fit", "validate") else ("test",):
            self.split(name)

    def split(self, name: str) -> TensorDataset:
        """The windows of the split `train`, `val` or `test`: inputs_NT and targets_NT."""
        tokens = self.tokens(name)
        missing = -(len(tokens) - 1) % self.context
        windows_NT = F.pad(tokens, (0, missing), value=NOTHING).unfold(0, self.context + 1, self.context)
        return TensorDataset(windows_NT[:, :-1].clamp(min=0), windows_NT[:, 1:])

    def tokens(self, name: str) -> Tensor:
        """All of a split, one after the other; int64."""
        if name not in self.splits:
            self.splits[name] = self._read(name)
        return self.splits[name]

    def train_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("train"), self.batch_size, self.trainer, seed=self.seed, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("val"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)

    def test_dataloader(self) -> DataLoader[Batch]:
        return runengine.loader(self.split("test"), self.batch_size, self.trainer, seed=self.seed, shuffle=False)

    def _read(self, name: str) -> Tensor:
        file = self.folder / f"{name}.npy"
        runengine.read_prepared(self.folder, [file], num_tokens=self.num_tokens)
        tokens = runengine.StoredArray(file).rows
        if len(tokens) <= self.context:
            raise UserError(
                f"data.context is {self.context}, but {file.as_posix()} has only {len(tokens)} tokens. Type "
                f"data.context={len(tokens) - 1}, or bring a longer text."
            )
        return tokens
