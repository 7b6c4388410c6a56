#!/usr/bin/env bash
# bash examples/gpu_check.sh: about ten minutes on one GPU. DEVICE=cpu QUICK=1 bash examples/gpu_check.sh: two on a CPU.
# A line PASS, FAIL or SKIP for each check, lines "ratio" for docs/cost.md, exit code 1 if a check fails.
# DATA_DIR is the folder of CIFAR-10 (downloaded if missing); QUICK=1 takes the data set digits, which needs no files.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0}" DEVICE="${DEVICE:-cuda}" QUICK="${QUICK:-0}" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

check() {  # check NAME COMMAND...: runs the command; its lines that begin with "ratio" or "SKIP" are shown
    local name=$1 start=$SECONDS
    shift
    if "$@" >"$out/log" 2>&1; then
        if grep '^SKIP' "$out/log"; then return; fi
        echo "PASS $name ($((SECONDS - start)) s)"
        grep '^ratio' "$out/log"
    else
        echo "FAIL $name ($((SECONDS - start)) s)"
        tail -n 8 "$out/log" | sed 's/^/    /'
        failed=1
    fi
    return 0
}

bash "$root/run.sh" list >/dev/null || exit 1  # creates the environment
python="$root/.venv/bin/python"
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then python=python; fi

check "the device is there" "$python" - <<'PY'
import os, torch
torch.ones(2, device=os.environ["DEVICE"]).sum().item()
PY
if [ "$failed" = 1 ]; then exit 1; fi

if [ "$QUICK" = 1 ]; then
    main=(guard_dc digits --iterations 3 --students 1 --student.epochs 20 --test-images 100)
    sre2l=(guard_sre2l digits --backbone "convnet:width=8,depth=2,norm=batch" --ipc 2 --squeeze.epochs 2)
    sre2l+=(--recover.iterations 10 --relabel.epochs 10 --students 1 --attacks "pgd@2/255" --test-images 100)
else
    main=(guard_dc cifar10 --recipe paper --ipc 10 --iterations 5 --students 8 --student.epochs 100 --test-images 1000)
    sre2l=(guard_sre2l cifar10 --ipc 10 --squeeze.epochs 2 --recover.iterations 300 --relabel.epochs 50)
    sre2l+=(--students 1 --attacks "pgd@2/255" --test-images 1000)
fi
main+=(--device "$DEVICE" --runs "$out/runs")
sre2l+=(--device "$DEVICE" --runs "$out/runs")
check "main job: ${main[*]:0:2}" bash "$root/run.sh" "${main[@]}"
check "main job again: the stored table" bash "$root/run.sh" "${main[@]}"
check "SRe2L's four stages, bfloat16" bash "$root/run.sh" "${sre2l[@]}" --compute.amp bf16
if [ "$DEVICE" = cpu ]; then
    echo "SKIP SRe2L's four stages, float16: only on a GPU"
else
    check "SRe2L's four stages, float16" bash "$root/run.sh" "${sre2l[@]}" --compute.amp fp16
fi

check "GUARD's loss under autocast is near float32" "$python" - <<'PY'
import os, torch
from distill.models import build
from robust import CurvatureRegularizedLoss

device = torch.device(os.environ["DEVICE"])
network = build("convnet:width=64", channels=3, image_size=32, num_classes=10, generator=torch.Generator().manual_seed(0))
x, y = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 10
loss = CurvatureRegularizedLoss(weight=1.0, h=3.0)

def gradient(dtype, where):
    model = network.to(where)
    parameters = list(model.parameters())
    scaler = torch.amp.GradScaler(where.type, enabled=dtype is torch.float16)
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    optimizer.zero_grad()
    with torch.autocast(where.type, dtype or torch.bfloat16, enabled=dtype is not None):
        value = loss(model, x.to(where), y.to(where))
    scaler.scale(value).backward()
    scaler.unscale_(optimizer)
    return value.item(), torch.cat([p.grad.flatten().float().cpu() for p in parameters])

value, exact = gradient(None, torch.device("cpu"))
halves = [torch.bfloat16] + [torch.float16] * (device.type == "cuda")
for dtype, allowed in [(None, 0.1), *((half, 0.2) for half in halves)]:
    found, gradients = gradient(dtype, device)
    error = ((gradients - exact).norm() / exact.norm()).item()
    print(f"ratio   {dtype}: the gradient differs from the CPU's in float32 by {error:.4f}, the loss by {found / value - 1:.5f}")
    assert gradients.isfinite().all() and error < allowed and abs(found / value - 1) < 0.02, (dtype, error)
PY

check "eight students at once" "$python" - <<'PY'
import os, time, torch
from distill.models import build
from distill.training.students import Training, train_student, train_together

device, quick = torch.device(os.environ["DEVICE"]), os.environ["QUICK"] == "1"
width, training = (8, Training(epochs=5)) if quick else (128, Training(epochs=50))
x = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(device)
y = (torch.arange(20) % 10).to(device)
wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None

def networks():
    draws = (torch.Generator().manual_seed(k) for k in range(8))
    return [build(f"convnet:width={width}", channels=3, image_size=32, num_classes=10, generator=g).to(device) for g in draws]

seconds = []
for _ in range(2):  # the first round is not timed
    singly, together, start = networks(), networks(), time.perf_counter()
    for each in singly:
        train_student(each, x, y, training, torch.Generator())
    wait()
    seconds = [time.perf_counter() - start]
    start = time.perf_counter()
    train_together(together, x, y, training, [torch.Generator() for _ in range(8)])
    wait()
    seconds.append(time.perf_counter() - start)
right = [[(n.eval()(x).argmax(1) == y).float().mean().item() for n in each] for each in (singly, together)]
print(f"ratio   eight students at once / one after another: {seconds[1] / seconds[0]:.2f}")
assert all(abs(a - b) < 0.11 for a, b in zip(*right)), right
PY

check "inner loops do not wait for the device" "$python" - <<'PY'
import os, torch
from distill.models import build
from distill.training.augment import STRATEGIES, augmentation
from distill.training.students import train_epochs
from robust import CurvatureRegularizedLoss, RobustTeacher

device = torch.device(os.environ["DEVICE"])
if device.type != "cuda":
    raise SystemExit(print("SKIP inner loops do not wait for the device: only on a GPU"))
draws = torch.Generator().manual_seed(0)
network = build("convnet:width=32", channels=3, image_size=32, num_classes=10, generator=draws).to(device)
x, y = torch.randn(64, 3, 32, 32, device=device), torch.zeros(64, dtype=torch.long, device=device)
teacher = RobustTeacher(network, CurvatureRegularizedLoss(1.0, 3.0))
optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
for mode in ("default", "error"):  # the first round loads kernels
    torch.cuda.set_sync_debug_mode(mode)
    teacher.value_and_gradients(x, y)
    for policy in (*STRATEGIES, "dc:crop_scale_rotate"):
        train_epochs(network, x, y, optimizer, epochs=1, batch_size=16, generator=draws, augmentation=augmentation(policy))
torch.cuda.set_sync_debug_mode("default")
PY

check "times and memory of gradients" "$python" - <<'PY'
import os, statistics, time, torch
from distill.models import build
from robust import CrossEntropy, CurvatureRegularizedLoss, RobustTeacher

device, quick = torch.device(os.environ["DEVICE"]), os.environ["QUICK"] == "1"
cuda = device.type == "cuda"
for spec, batch in [("convnet:width=16", 16)] if quick else [("convnet:width=128", 64), ("convnet:width=128", 256), ("resnet18", 256)]:
    network = build(spec, channels=3, image_size=32, num_classes=10, generator=torch.Generator().manual_seed(0)).to(device).eval()
    x, y = torch.randn(batch, 3, 32, 32, device=device), torch.arange(batch, device=device) % 10
    losses = {"cross-entropy": CrossEntropy(), "GUARD": CurvatureRegularizedLoss(1.0, 3.0)}
    seconds, memory = {name: [] for name in losses}, {}
    for _ in range(4 if quick else 12):
        for name, loss in losses.items():
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            RobustTeacher(network, loss).gradients(x, y)
            if cuda:
                torch.cuda.synchronize()
                memory[name] = torch.cuda.max_memory_allocated() / 1e9
            seconds[name].append(time.perf_counter() - start)
    plain, guard = (statistics.median(each[1:]) for each in seconds.values())
    print(f"ratio   {spec}, batch {batch}: GUARD / cross-entropy {guard / plain:.2f}; cross-entropy {1000 * plain:.1f} ms")
    for name, most in memory.items():
        print(f"ratio   {spec}, batch {batch}: {name} {most:.2f} GB (docs/gpu.md counts 0.57 and 1.95 for dc and guard_dc, batch 256 at width 128)")
PY

echo "$([ "$failed" = 0 ] && echo "all checks passed" || echo "a check failed") after $SECONDS s"
exit "$failed"
