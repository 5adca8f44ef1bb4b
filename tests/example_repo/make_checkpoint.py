"""Writes the small checkpoint that `pretrained` is shown on: torchvision's SqueezeNet for ten classes.

python tests/example_repo/make_checkpoint.py .cache/example/squeezenet.safetensors
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(squeezenet1_1(num_classes=10).state_dict(), path)
