"""What test_sre2l_cli starts under torchrun: teachers and a student of all processes, written by the first."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from distill.models import build
from distill.runs.ranks import is_main_process, process_group, world_size
from distill.runs.run import Run
from distill.training.crop_labels import Labels, digest
from robust import Normalize, RobustTeacher
from sre2l.precision import Compute
from sre2l.relabel import Relabel, relabel
from sre2l.squeeze import Squeeze, squeeze
from sre2l.validate import Validate, train
from tests.toy import toy

SPEC = "convnet:width=4,depth=2,norm=none"
WITH_BATCHNORM = "convnet:width=4,depth=2,norm=batch"


def main(folder: Path) -> None:
    """Train all."""
    real, floats = toy(), Compute()
    config = Squeeze(
        epochs=2, batch_size=8, lr=0.05, accumulate=2, loss="guard:weight=0.1,h=0.5", augment="padded_crop"
    )
    run = Run(folder, None, stages=folder / "stages")
    teacher, _ = squeeze(real, SPEC, config, floats, run)
    coupled = replace(config, accumulate=1, loss="guard:weight=0.1,h=0.5,batchnorm=train", statistics=2)
    synchronised, _ = squeeze(real, WITH_BATCHNORM, replace(coupled, sync_batchnorm=True), floats, run)
    apart, _ = squeeze(real, WITH_BATCHNORM, coupled, floats, run)
    normalize = Normalize(real.mean, real.std)
    shape = {"channels": 3, "image_size": 8, "num_classes": 2}
    # labels of a fixed network, so that the students' targets do not depend on the teacher above
    fixed = RobustTeacher(build(SPEC, **shape, generator=torch.Generator().manual_seed(3)).eval().requires_grad_(False))
    images = toy(12, seed=4).images  # in batches of 9 and 3: two processes take 4 and 5 images, then 3 each
    store = relabel(fixed, "fixed", images, normalize, Relabel(3, 9, "mixup", crop_min=0.5), floats, run)
    student: nn.Module = build(SPEC, **shape, generator=torch.Generator().manual_seed(5))
    student_config = Validate("sgd", 0.05, 0.01, temperature=2.0, accumulate=2)
    train(student, images, Labels(store, digest(images)), normalize, student_config, floats, run, "0")
    if is_main_process():
        networks = {
            **{"teacher": teacher.network, "synchronised": synchronised.network, "apart": apart.network},
            "student": student,
        }
        tensors = {f"{name}.{n}": t for name, network in networks.items() for n, t in network.state_dict().items()}
        save_file(tensors, folder / "networks.safetensors")
    print(f"{world_size()} processes")


if __name__ == "__main__":
    with process_group(torch.device("cpu")):
        main(Path(sys.argv[1]))
