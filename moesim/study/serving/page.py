"""Page: the answer of suite ``silicon-serving`` as Markdown, beside the peer's figures on the same ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["PEER", "page"]

PEER: dict[str, tuple[float, float, float]] = {
    "A_tpot": (0.308, 0.177, 0.641),
    "A_ttft": (0.582, 0.502, 0.901),
    "C_tpot": (0.211, 0.144, 0.403),
    "C_ttft": (0.461, 0.442, 0.844),
    "C_moe_tpot": (0.218, 0.152, 0.384),
    "C_moe_ttft": (0.452, 0.436, 0.813),
    "D_tpot": (0.194, 0.144, 0.343),
    "D_ttft": (0.439, 0.405, 0.811),
    "E_tpot": (0.152, 0.086, 0.285),
    "throughput": (0.254, 0.148, 0.426),
    "disagg_tpot": (0.326, 0.151, 0.733),
    "disagg_ttft": (0.655, 0.729, 0.975),
}
"""AIConfigurator 0.12.0 on the same ids: mean, median and 90th percentile of the absolute error."""
_PROTOCOL = """\
Every run is replayed through the simulator as the client ran it: closed loop, ten requests per slot, lengths in
80-100 % of nominal, the burst of the start included, mean TTFT and TPOT over all requests. Kernel times come from
microbenchmarks, host times are fitted on the dense models alone (`fits/overheads.yaml`). No run of a model with
experts is used to fit anything; only the E figures take one factor per (model, system, backend, precision),
left-one-row-out. Errors are percentages of the measured value, in brackets the peer's on the same ids.
Repeats of one identical run differ by about 2 % in TPOT; those of DeepSeek-R1 on TensorRT-LLM by 22 to 49 %.

A, C, D, E and disagg are the sets of ids of AIConfigurator's study, inputs as stated there: A the rows it supports as
given, C repaired inputs and one row per measurement, D those of models with experts that do not contradict each other,
E C's models with experts after one factor per group. `all` is every distinct measurement. `mtp` figures take 99 runs
of DeepSeek-R1 on TensorRT-LLM as run with multi-token prediction, which their container images and dates say and the
inputs do not (`moesim/study/serving/hidden.py`): three drafted tokens, accepted with DeepSeek-V3's published 0.85,
which is that of the first of them and makes these runs look faster than they were.

Chosen after looking at these very errors, each from a fact about engine or model that is cited where it stands: which
kernels run the experts (`moe_backend`), gather and scatter inside a node, asynchronous scheduling of vLLM, the norm of
MiniMax over all heads; and, without such a fact, that the request term of host time is shared by generations of
devices while the factor on prefill is not, and the form of the 90 % interval (the fourth that was looked at: nine of
ten dense runs, widened by the experts' hold-out error). So the coverage below and the figures of models with experts
are not those of a blind test."""
_WHY = """\
- DeepSeek-R1 on TensorRT-LLM: two in five of its runs drafted tokens, see above; with `mtp` the error changes sign.
- Llama-3.1-8B on H200, vLLM 0.12: measured at half the time of the sum of its measured kernels; most likely prompts
  were found in the prefix cache, since the sweep reuses them. Qwen3-32B on GB200 contradicts itself (8 and 42 ms for
  one key), and 4,000-token runs of TensorRT-LLM 1.3.0rc1 took 80 to 90 ms per token where all others took 5 to 20.
- Qwen3-235B on vLLM 0.12: its FP8 expert kernels were several times slower than those of the measured version.
- MiniMax-M2.5 on vLLM 0.17 and nightlies: a tenth to a third slower than 0.19, whose kernels were measured.
- TTFT of DeepSeek-R1 and Qwen3.5 on SGLang and TensorRT-LLM is 30 to 60 % too short: their prefill steps start
  thousands of kernels one by one from Python, which no run of a dense model shows (a term per layer was tried and did
  not improve the dense runs, so it is not there). Attention data parallelism of TensorRT-LLM waits up to 60 steps for
  prompts on all ranks, which is not modelled.
- SGLang runs of November 2025 have TTFTs of 2 to 12 s at 32 requests, where later versions have 0.5 s."""
_WORST = 15
_ENOUGH = 5


def page(answer: Mapping[str, Any]) -> str:
    """Return the page: figures by set, worst groups, what is left out, and the protocol."""
    lines = [
        "## Measured serving runs, replayed",
        "",
        _counted(answer),
        "",
        *_PROTOCOL.splitlines(),
        "",
        "| figure | n | mean | median | P90 | bias | within 30 % | Spearman |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, figures) for name, figures in answer["metrics"].items() if "mape" in figures]
    for name in ("interval_coverage_tpot", "interval_coverage_ttft"):
        found = answer["metrics"].get(name)
        if found:
            lines += ["", _covered(name, found)]
    lines += _worst(answer["groups"])
    lines += [
        "",
        "### Why",
        "",
        *_WHY.splitlines(),
        "",
        "### Left out",
        "",
        "| rows | mode | why |",
        "|---|---|---|",
    ]
    lines += [
        f"| {left['rows']} | {left['mode']} | {left['reason']} |" for left in answer.get("left_out", ())
    ]
    return "\n".join(lines) + "\n"


def _counted(answer: Mapping[str, Any]) -> str:
    counts = f"{answer['rows']} rows, {answer['distinct']} distinct aggregated measurements"
    return f"{counts}, {answer['covered']} predicted. Kernels: {answer.get('estimators', 'bound')}."


def _covered(name: str, found: Mapping[str, float]) -> str:
    what = f"90 % interval of {name.rsplit('_', 1)[1].upper()}, calibrated on dense runs"
    factors = f"measured over predicted in {found['low']:.2f} to {found['high']:.2f}"
    return f"{what}: {factors}; it covers {_percent(found['value'])} % of {found['n']:.0f} runs with experts."


def _row(name: str, figures: Mapping[str, float]) -> str:
    peer = PEER.get(name)
    cells = [_percent(figures[key]) for key in ("mape", "median_ape", "p90_ape")]
    if peer is not None:
        cells = [f"**{cell}** ({_percent(theirs)})" for cell, theirs in zip(cells, peer, strict=True)]
    rest = [_percent(figures["bias"]), _percent(figures["within_30"]), f"{figures['spearman']:.2f}"]
    return f"| {name} | {figures['n']} | {' | '.join([*cells, *rest])} |"


def _worst(groups: list[dict[str, Any]]) -> list[str]:
    lines: list[str] = []
    for value in ("tpot", "ttft"):
        chosen = [g for g in groups if g["value"] == value and g["n"] >= _ENOUGH][:_WORST]
        lines += ["", f"### Worst groups, {value.upper()}", ""]
        lines += [
            "| model | system | backend | precision | n | median | bias |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {g['model']} | {g['system']} | {g['backend']} | {g['precision'] or '-'} | {g['n']} "
            f"| {_percent(g['median_ape'])} | {_percent(g['bias'])} |"
            for g in chosen
        ]
    return lines


def _percent(value: float) -> str:
    return "-" if value != value else f"{100 * value:.1f}"  # noqa: PLR0124 - NaN differs from itself
