"""A LightningModule. GUARD changes one line of its training step.

python examples/lightning_module.py --steps 3
"""

import argparse

import lightning
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from robust import CurvatureRegularizedLoss


class Classifier(lightning.LightningModule):
    """A small network. The loss takes `self.network` instead of this module, whose forward Lightning may wrap."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(784, 4)
        )
        self.guard = CurvatureRegularizedLoss(weight=1.0, h=3.0)

    def training_step(self, batch, batch_idx):
        """Return the loss of a batch."""
        x, y = batch
        loss = self.guard(self.network, x, y)  # GUARD, was: F.cross_entropy(self.network(x), y)
        print(f"step {batch_idx}: loss {loss.item():.4f}")
        return loss

    def validation_step(self, batch, batch_idx):
        """Log the plain loss. Gradients are off here; GUARD's loss would return its value without them."""
        x, y = batch
        self.log("val_loss", F.cross_entropy(self.network(x), y))

    def configure_optimizers(self):
        """Return the optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(steps: int) -> None:
    """Train on generated images."""
    lightning.seed_everything(0, verbose=False)
    y = torch.arange(16 * steps) % 4
    data = TensorDataset(torch.randn(len(y), 3, 16, 16) + y.view(-1, 1, 1, 1) - 1.5, y)
    trainer = lightning.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Classifier(), DataLoader(data, 16, shuffle=True), DataLoader(data, 16))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    main(parser.parse_args().steps)
