"""Derive the traffic files of this folder from the public traces they describe.

    python workloads/traffic/derive.py [folder of the traces]

The traces are looked for in the folder given, else in ``$MOESIM_SHARED/data/traces``, else in
``../shared/data/traces`` beside the checkout. They are not part of moesim: the Azure LLM inference traces of
2023 come from the Azure Public Dataset (CC-BY-4.0), the conversation trace from kvcache-ai/Mooncake
(Apache-2.0). The output is a pure function of the traces.
"""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from moesim.files import write_atomic
from moesim.spec.traffic import TraceFile
from moesim.traffic.fit import fit_joint, fit_operational_cv, fit_quantiles, fit_sessions, fit_weights
from moesim.traffic.readers import Trace, read_trace

if TYPE_CHECKING:
    from collections.abc import Iterable

Longs = npt.NDArray[np.int64]

HERE = Path(__file__).resolve().parent
AZURE = (
    "Azure Public Dataset, AzureLLMInferenceTrace_{part}.csv (2023-11-16), CC-BY-4.0; "
    "described in Patel et al., Splitwise, ISCA 2024"
)
AZURE_URL = "https://github.com/Azure/AzurePublicDataset/blob/master/AzureLLMInferenceDataset2023.md"
MOONCAKE = (
    "kvcache-ai/Mooncake, conversation_trace.jsonl, Apache-2.0; described in Qin et al., Mooncake, FAST 2025"
)
MOONCAKE_URL = "https://github.com/kvcache-ai/Mooncake"
FIRST_ROWS = 10_000  # the prefix that simulators' speed has been compared on


def traces_folder(given: str | None = None) -> Path:
    """Return the folder that holds the traces."""
    shared = os.environ.get("MOESIM_SHARED") or str(HERE.parents[2] / "shared")
    return Path(given) if given else Path(shared) / "data" / "traces"


def derive(folder: Path) -> dict[str, str]:
    """Return the text of each file by name."""
    conversation = read_trace(TraceFile(format="azure", path=str(folder / "AzureLLMInferenceTrace_conv.csv")))
    code = read_trace(TraceFile(format="azure", path=str(folder / "AzureLLMInferenceTrace_code.csv")))
    first = read_trace(
        TraceFile(format="azure", path=str(folder / "AzureLLMInferenceTrace_conv.csv"), limit=FIRST_ROWS)
    )
    mooncake = read_trace(TraceFile(format="mooncake", path=str(folder / "mooncake_conversation.jsonl.gz")))
    return {
        "azure-conversation.yaml": _azure("azure-conversation", "conv", conversation, 60),
        "azure-conversation-10k.yaml": _azure("azure-conversation-10k", "conv", first, 60),
        "azure-code.yaml": _azure("azure-code", "code", code, 10),
        "mooncake-conversation.yaml": _mooncake(mooncake),
    }


def _azure(name: str, part: str, trace: Trace, width: int) -> str:
    rows = f"first {len(trace):,} rows" if name.endswith("10k") else f"all {len(trace):,} rows"
    note = (
        f"{rows}; mean {trace.input_tokens.mean():.1f} in, {trace.output_tokens.mean():.1f} out; "
        f"clipped to 4,096 tokens in total: {_clipped(trace)}; gaps between arrivals have a CV of "
        f"{_gap_cv(trace):.2f}. Derived by derive.py: quantile tables of 65 points, ranks in a 16 x 16 "
        f"histogram, requests per {width} s. The trace has no prefix information."
        + (
            " The first 10,000 rows are longer on average: see azure-conversation-10k."
            if name == "azure-conversation"
            else ""
        )
    )
    lines = [
        *_head(name, AZURE.format(part=part), AZURE_URL, note),
        *_profile(trace, width),
        *_lengths(trace),
    ]
    return "\n".join(lines) + "\n"


def _mooncake(trace: Trace) -> str:
    fit = fit_sessions(trace)
    later = np.flatnonzero(fit.parent >= 0)
    parent = fit.parent[later]
    gaps = trace.arrival_s[later] - trace.arrival_s[parent]
    growth = np.maximum(trace.input_tokens[later] - fit.kept_tokens[later], 1)
    kept = fit.kept_tokens[later] / trace.input_tokens[parent]
    cut = kept < 1
    at, share = _share_by_prompt(trace.input_tokens[parent], cut)
    sizes = np.bincount(fit.session)
    alone = (sizes == 1)[fit.session]
    opening = fit.parent < 0
    turns = _turns(trace, fit.session)
    note = (
        f"all {len(trace):,} rows; mean {trace.input_tokens.mean():.1f} in, "
        f"{trace.output_tokens.mean():.1f} out; {fit.reuse:.2%} of the {trace.block_tokens}-token blocks had "
        f"been seen before, {len(later) / len(trace):.1%} of the requests continue an earlier one. "
        "Conversations were reconstructed from the hashes: a request continues the last one that holds its "
        "longest known prefix. Turns are counted over sessions that begin between one sixth and one half of "
        "the trace, because its two ends cut sessions off. Timestamps come in steps of 3 s; counts per step "
        f"have a variance of {_dispersion(trace):.2f} times their mean, so arrivals count as Poisson inside "
        "each minute. Derived by derive.py."
    )
    gap_levels, gap_values = fit_quantiles(gaps, 25)
    kept_levels, kept_values = fit_quantiles(kept[cut], 17)
    lines = [
        *_head("mooncake-conversation", MOONCAKE, MOONCAKE_URL, note),
        *_profile(trace, 60, cv=1.0),
        *_lengths(trace),
        "prefix:",
        "  kind: sessions",
        f"  common_tokens: {fit.common_blocks * trace.block_tokens}",
        f"  block_tokens: {trace.block_tokens}",
        *_flow("turns", turns, 2),
        "  first:",
        *_table(trace.input_tokens[opening & ~alone], 65, 4),
        "  single:",
        *_table(trace.input_tokens[opening & alone], 65, 4),
        "  growth:",
        *_table(growth[~cut], 65, 4),
        "  rewrite:",
        *_flow("prompt", at, 4),
        *_flow("share", (f"{value:.4f}" for value in share), 4),
        *_flow("levels", _levels(kept_levels), 4),
        *_flow("kept", (f"{value:.4g}" for value in kept_values), 4),
        "    growth:",
        *_table(growth[cut], 33, 6),
        "  gap:",
        "    kind: quantiles",
        *_flow("levels", _levels(gap_levels), 4),
        *_flow("times", (f"{value:.4g} s" for value in gap_values), 4),
    ]
    return "\n".join(lines) + "\n"


def _turns(trace: Trace, session: npt.NDArray[np.int64]) -> list[int]:
    """Count sessions by turns, leaving out those that the trace's beginning or end may have cut."""
    _, first, sizes = np.unique(session, return_index=True, return_counts=True)
    begin = trace.arrival_s[first] / trace.arrival_s[-1]
    counts = np.bincount(sizes[(begin >= 1 / 6) & (begin < 1 / 2)])[1:]
    return np.trim_zeros(counts, "b").tolist()


def _share_by_prompt(prompt: Longs, cut: npt.NDArray[np.bool_]) -> tuple[list[int], list[float]]:
    """Return (mean prompt, share of ``cut``) of ten equal groups by prompt length."""
    groups = np.array_split(np.argsort(prompt, kind="stable"), 10)
    return [round(float(prompt[g].mean())) for g in groups], [float(cut[g].mean()) for g in groups]


def _dispersion(trace: Trace) -> float:
    counts = np.bincount(np.round(trace.arrival_s / 3).astype(np.int64))
    local = counts[: len(counts) // 20 * 20].reshape(-1, 20)  # minute by minute, so that drift does not count
    return float(local.var(axis=1, ddof=1).mean() / counts.mean())


def _clipped(trace: Trace) -> str:
    outputs = np.minimum(trace.output_tokens, 4095)
    inputs = np.minimum(trace.input_tokens, 4096 - outputs)
    return f"{inputs.mean():.1f} in, {outputs.mean():.1f} out (shorten_input)"


def _gap_cv(trace: Trace) -> float:
    gaps = np.diff(trace.arrival_s)
    return float(gaps.std() / gaps.mean())


def _head(name: str, cite: str, url: str, note: str) -> list[str]:
    lines = [
        "# Written by workloads/traffic/derive.py; change that, not this.",
        "kind: traffic",
        f"name: {name}",
        "sources:",
        '  - fields: ["*"]',
    ]
    for key, text in (("cite", cite), ("url", url), ("note", note)):
        if len(text) < 90:
            lines.append(f'    {key}: "{text}"')
            continue
        lines.append(f"    {key}: >-")
        lines += textwrap.wrap(
            text, 104, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
        )
    return lines


def _profile(trace: Trace, width: int, cv: float | None = None) -> list[str]:
    weights = fit_weights(trace.arrival_s, width)
    spread = fit_operational_cv(trace.arrival_s, weights, width) if cv is None else cv
    return [
        "arrivals:",
        "  kind: profile",
        f"  rate: {weights.sum() / (len(weights) * width):.5g} request/s",
        f"  bin: {width} s",
        f"  cv: {spread:.4g}",
        *_flow("weights", weights, 2),
    ]


def _lengths(trace: Trace) -> list[str]:
    joint = fit_joint(trace.input_tokens, trace.output_tokens, 16)
    rows = ["    - [" + ", ".join(str(count) for count in row) + "]" for row in joint]
    return [
        "lengths:",
        "  kind: empirical",
        "  input:",
        *_table(trace.input_tokens, 65, 4),
        "  output:",
        *_table(trace.output_tokens, 65, 4),
        "  joint:",
        *rows,
    ]


def _table(values: npt.NDArray[np.int64], points: int, indent: int) -> list[str]:
    levels, tokens = fit_quantiles(values, points)
    return [*_flow("levels", _levels(levels), indent), *_flow("tokens", tokens.astype(np.int64), indent)]


def _levels(levels: npt.NDArray[np.float64]) -> Iterable[str]:
    return (f"{level:.7g}" for level in levels)


def _flow(key: str, values: Iterable[object], indent: int) -> list[str]:
    text = f"{key}: [" + ", ".join(str(value) for value in values) + "]"
    space = " " * indent
    return textwrap.wrap(
        text, 108, initial_indent=space, subsequent_indent=space + "  ", break_on_hyphens=False
    )


def main() -> None:
    """Write the files beside this script."""
    folder = traces_folder(sys.argv[1] if len(sys.argv) > 1 else None)
    for name, text in derive(folder).items():
        write_atomic(HERE / name, text)
        print(f"{name}: {len(text):,} bytes")


if __name__ == "__main__":
    main()
