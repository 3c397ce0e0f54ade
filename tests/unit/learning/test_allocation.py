from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: how an allocator is set cannot be taken back.
_HOLES = """
import resource
from pathlib import Path
import numpy as np
from recfuse.learning.allocation import keep_freed_memory, return_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

keep_freed_memory()
before = resident()
blocks = [np.ones(1 << size) for _ in range(100) for size in (18, 10)]  # 2 MiB and 8 KiB, one after the other
del blocks[::2]
kept = resident() - before
return_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_was_kept_goes_back_from_between_blocks_in_use():
    done = subprocess.run([sys.executable, "-c", _HOLES], check=True, stdout=subprocess.PIPE, text=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 150, "freed memory stays for the next step"
    assert left < 50
