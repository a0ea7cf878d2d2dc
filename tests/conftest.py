"""Small models: one thread each is fastest, and leaves the other cores to the other test processes."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
