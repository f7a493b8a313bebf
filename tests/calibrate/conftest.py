"""Where there is no GPU, Triton's kernels run in its interpreter; that is settled when Triton is first imported."""

import importlib.util
import os
import sys

if importlib.util.find_spec("torch") and importlib.util.find_spec("triton") and "triton" not in sys.modules:
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
