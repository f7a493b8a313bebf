"""Loads for the balance tests and its benchmark: fitted skew at DeepSeek-V3's size, TensorRT-LLM's case, recordings."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
from scipy.stats import norm

from moesim.plan.balance import group_loads, sequence_loads, spread_of
from moesim.routing.trace import read_trace

ROOT = Path(__file__).resolve().parents[2]
README_LOADS = np.array(
    [
        [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
        [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
    ],
    dtype=float,
)
"""Input of the README of DeepSeek's EPLB."""
RECORDINGS = {"DeepSeek-V2-Lite": "deepseek-v2-lite-prefill.npz", "gpt-oss-20b": "gpt-oss-20b-decode.npz"}


def deepseek_v3(seed, layers=58, experts=256, tokens=16384):
    """Return loads [layer, expert] whose skew is that of the shipped fits of recorded routing.

    Each layer takes the popularity of a random layer of DeepSeek-V2-Lite (even seeds) or gpt-oss-20b (odd), stretches
    its quantiles to 256 experts, and draws the choices of ``tokens`` tokens, 8 each.
    """
    name = ("deepseek-v2-lite", "gpt-oss-20b")[seed % 2]
    with np.load(ROOT / "workloads" / "routing" / f"{name}.npz") as file:
        popularity = file["popularity"].astype(np.float64)
    generator = np.random.default_rng(seed)
    out = np.empty((layers, experts))
    for layer in range(layers):
        known = np.log(np.sort(popularity[generator.integers(len(popularity))]))
        at = np.sort(generator.random(experts)) * (len(known) - 1)
        share = np.exp(np.interp(at, np.arange(len(known)), known))
        out[layer] = generator.multinomial(tokens * 8, generator.permutation(share / share.sum()))
    return out


def tensorrt_llm(seed, layers=58, experts=256, ranks=32):
    """Return loads [layer, expert] with the spread that TensorRT-LLM published for EP32 without EPLB.

    By slot (one expert each): mean 128, standard deviation 164.1, hottest 10.948 above the mean (in means); by rank, 8
    experts in order: standard deviation 491.6 and hottest 1.564 above the mean of 1024, to 2 % per layer.
    """
    generator = np.random.default_rng(seed)
    top = 128 * 11.948
    low, high = 0.1, 3.0
    for _ in range(60):
        sigma = 0.5 * (low + high)
        body = np.exp(sigma * norm.ppf((np.arange(experts - 1) + 0.5) / (experts - 1)))
        body *= (128 * experts - top) / body.sum()
        load = np.append(body, top)
        low, high = (sigma, high) if load.std() < 164.1 else (low, sigma)
    out = np.empty((layers, experts))
    for layer in range(layers):
        row = generator.permutation(load)

        def miss(x):
            rank = x.reshape(ranks, -1).sum(axis=1)
            return abs(rank.std() / 491.6 - 1) + abs(rank.max() / 1024 - 2.564)

        now = miss(row)
        while now > 0.02:
            i, j = generator.integers(experts, size=2)
            row[[i, j]] = row[[j, i]]
            after = miss(row)
            if after > now:
                row[[i, j]] = row[[j, i]]
            else:
                now = after
        out[layer] = row
    return out


def shared_routing():
    """Return the folder of recorded routing, or None."""
    folder = Path(os.environ.get("MOESIM_SHARED") or ROOT.parent / "shared") / "data" / "routing"
    return folder if folder.is_dir() else None


def halves(trace, smallest=8, shuffle=None):
    """Return first and second half of every group's sequences, groups of fewer than ``smallest`` left out."""
    first, second = [], []
    for name in np.unique(trace.group):
        members = np.flatnonzero(trace.group == name)
        if len(members) < smallest:
            continue
        if shuffle is not None:
            members = np.random.default_rng(shuffle).permutation(members)
        first.append(members[: len(members) // 2])
        second.append(members[len(members) // 2 :])
    return tuple(trace.take(np.sort(np.concatenate(part))) for part in (first, second))


def recorded(folder, name, shuffle=None):
    """Return loads of the planning half and the judging half [group, layer, expert], and a spread by rank count."""
    plan, judge = halves(read_trace(folder / RECORDINGS[name]), shuffle=shuffle)
    scenario = np.unique(plan.group, return_inverse=True)[1]
    samples = sequence_loads(plan)
    return group_loads(plan)[1], group_loads(judge)[1], lambda ranks: spread_of(samples, scenario, ranks)


def all_placements(experts, ranks, slots):
    """Return every placement of one layer that has all experts, [placement, ranks * slots]."""
    sets = list(itertools.combinations_with_replacement(range(experts), slots))
    rows = [
        np.concatenate(choice)
        for choice in itertools.combinations_with_replacement(np.array(sets), ranks)
        if len(np.unique(np.concatenate(choice))) == experts
    ]
    return np.array(rows)
