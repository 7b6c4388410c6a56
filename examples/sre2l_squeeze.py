"""A squeeze in the style of SRe2L: a ResNet-18 trained under AMP and DistributedDataParallel. GUARD changes one line.

python examples/sre2l_squeeze.py --steps 3
torchrun --nproc-per-node 2 examples/sre2l_squeeze.py --steps 3
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from robust import CurvatureRegularizedLoss

guard = CurvatureRegularizedLoss(weight=1.0, h=3.0, h_warmup=(0.1, 1.0))
plain = nn.CrossEntropyLoss()  # the loss that GUARD replaces


def main(steps: int) -> None:
    """Train a teacher on generated images, in one process or under torchrun in several."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu")
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    network = resnet18(num_classes=4).to(device)
    model = DistributedDataParallel(network) if world > 1 else network
    optimizer = torch.optim.SGD(model.parameters(), lr=0.025, momentum=0.9, weight_decay=1e-4)
    half = torch.float16 if device.type == "cuda" else torch.bfloat16  # bfloat16 needs no scaling
    scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)

    generator = torch.Generator().manual_seed(rank)  # each process has different images
    labels_all = torch.arange(64) % 4
    images_all = torch.randn(64, 3, 32, 32, generator=generator) + labels_all.view(-1, 1, 1, 1) - 1.5
    steps_of_an_epoch = 2
    model.train()
    for step in range(steps):
        criterion = guard.at(step // steps_of_an_epoch)  # h grows in the first epochs; for a constant h, use guard
        batch = torch.randperm(64, generator=generator)[:16]
        images, labels = images_all[batch].to(device), labels_all[batch].to(device)
        optimizer.zero_grad()
        with torch.autocast(device.type, dtype=half):
            loss = criterion(model, images, labels)  # GUARD, was: plain(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if rank == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    checksum = sum(p.double().abs().sum() for p in network.parameters()).item()
    print(f"process {rank} of {world}: weights {checksum:.6f}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    main(parser.parse_args().steps)
