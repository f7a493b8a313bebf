"""Hidden settings: multi-token prediction that the file of measured runs does not state, read from its other columns.

InferenceMAX added runs with MTP for TensorRT-LLM in January 2026 (perf-changelog.yaml of the benchmark, pull request
392) and moved the two kinds to different container images soon after: with MTP to release 1.2.0rc6.post3 (pull requests
632 and 642), without to 1.2.0rc6.post2 (594 and 620). The file keeps image and date, not the setting. Its scripts
(dsr1_*_trt_mtp.sh) draft three tokens, one with attention data parallelism. Nothing here was fitted on a run.
"""

from __future__ import annotations

import re

from moesim.spec.deployment import Speculation
from moesim.study.serving.rows import ServingRow

__all__ = ["ACCEPTANCE", "speculation_of"]

ACCEPTANCE = 0.85
"""Of a drafted token, given those before it: DeepSeek-V3 report (arXiv:2412.19437, 5.4.3), second token, 85 to 90 %."""
_IMAGE = "1.2.0rc6.post3"
_FIRST_IMAGE, _FIRST_RUN = "1.1.0rc2.post2", "2026-01-14"
_LAYERS = 61


def speculation_of(row: ServingRow) -> Speculation | None:
    """Return the speculation that a run very likely used, None for all others."""
    if row.model != "deepseek-ai/DeepSeek-R1" or row.backend != "trtllm" or row.shape is None:
        return None
    measured = re.search(r"measured=([0-9-]+)", row.source)
    day = measured.group(1) if measured else ""
    if row.version != _IMAGE and (row.version, day) != (_FIRST_IMAGE, _FIRST_RUN):
        return None
    drafts = 3 if row.shape.dp == 1 else 1
    return Speculation(draft_tokens=drafts, acceptance=ACCEPTANCE, draft_cost=drafts / _LAYERS)
