"""Time a step of the training that made the weights, where there is one on a CUDA device; the median of five after two.

python tests/gpu/training_step.py
"""

import time
from importlib.resources import files

import numpy as np
import torch

from shd_bids.nn.device import choose_device, describe_device
from shd_bids.nn.unet import UNet
from shd_bids.training import loop
from shd_bids.training.config import TrainingConfig
from shd_bids.training.objective import Case, Objective
from shd_bids.training.simulated import draw_case

_WARM_UP, _TIMED = 2, 5


def main() -> None:
    """Print one line for each precision."""
    config = TrainingConfig.from_toml((files("shd_bids.training") / "recipes" / "tissue.toml").read_text())
    device = choose_device("auto")
    print(describe_device(device))
    case = draw_case((config.seed, 0), config)
    for precision in ("float32", "bf16") if device.type == "cuda" else ("float32",):
        seconds = np.median(step_times(case, config, device, precision)[_WARM_UP:])
        line = f"{precision}: {seconds:.3f} s a step of one crop of {config.size}^3 voxels"
        if device.type == "cuda":
            line += f", at most {torch.cuda.max_memory_allocated(device) / 2**20:.0f} MB"
        print(line, flush=True)


def step_times(case: Case, config: TrainingConfig, device: torch.device, precision: str) -> np.ndarray:
    """Return the seconds of each step of a training that shows one crop again and again."""
    ends = [time.monotonic()]

    def note(record: dict[str, float]) -> None:  # the loop has read the loss, so the device is done
        ends.append(time.monotonic())

    schedule = loop.Schedule(steps=_WARM_UP + _TIMED, rate=lambda step: 1e-3, precision=precision)
    cases = iter(lambda: [case], None)
    loop.run(UNet(config.network()).to(device), lambda step: cases, Objective(config.loss), schedule, report=note)
    return np.diff(ends)


if __name__ == "__main__":
    main()
