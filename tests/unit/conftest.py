"""Unit tests start no Ray and share the machine politely."""

from __future__ import annotations

import torch

# On small matrices two threads spend more time waiting for each other than they save.
torch.set_num_threads(1)
