"""A short version of timm's train.py: MixUp and CutMix, optimiser, schedule and EMA. GUARD changes one line.

python examples/timm_training.py --steps 3
"""

import argparse

import timm
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

from robust import CurvatureRegularizedLoss

guard = CurvatureRegularizedLoss(weight=1.0, h=3.0)
loss_fn = SoftTargetCrossEntropy()  # the loss that GUARD replaces; GUARD's loss takes soft targets too


def main(steps: int) -> None:
    """Train timm's smallest vision transformer on generated images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4, img_size=32).to(device)
    model_ema = ModelEmaV3(model, decay=0.99)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    lr_scheduler = CosineLRScheduler(optimizer, t_initial=steps, t_in_epochs=False)
    mixup_fn = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=4)
    targets_all = torch.arange(64, device=device) % 4
    images_all = torch.randn(64, 3, 32, 32, device=device) + targets_all.view(-1, 1, 1, 1) - 1.5
    model.train()
    for update in range(steps):
        batch = torch.randperm(64)[:16].to(device)
        input, target = mixup_fn(images_all[batch], targets_all[batch])
        loss = guard(model, input, target)  # GUARD, was: loss_fn(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model_ema.update(model, step=update)
        lr_scheduler.step_update(update + 1)
        print(f"step {update}: loss {loss.item():.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    main(parser.parse_args().steps)
