"""Derive the routing files of this folder from the public counts and traces they describe.

    python workloads/routing/derive.py [--fit] [folder of the data]

The data are looked for in the folder given, else in ``$MOESIM_SHARED/data/routing``, else in
``../shared/data/routing`` beside the checkout. They are not part of moesim. Popularity files take a second; with
``--fit`` the two fitted models are made again too, some minutes each.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar

from moesim.files import dump_yaml, write_atomic
from moesim.routing.expected import plackett_luce_inclusion, zipf_weights
from moesim.routing.produce import fit_routing
from moesim.spec.base import Source

HERE = Path(__file__).resolve().parent

DOMAINS = ("arxiv", "book", "c4", "github", "wikipedia")
OLMOE = {
    "fields": ["*"],
    "cite": "allenai/OLMoE, expert counts by domain, Apache-2.0; OLMoE, arXiv 2409.02060",
    "url": "https://github.com/allenai/OLMoE",
}


def shares(counts: pd.DataFrame, model: str, topk: int) -> dict[int, np.ndarray]:
    """Share of choices of each expert by layer, the mean over domains."""
    rows = counts[(counts.model == model) & (counts.topk == topk) & counts.domain.isin(DOMAINS)]
    total = rows.groupby(["domain", "layer"])["count"].transform("sum")
    mean = rows.assign(share=rows["count"] / total).groupby(["layer", "expert"])["share"].sum() / len(DOMAINS)
    return {int(layer): group.sort_index().to_numpy() for layer, group in mean.groupby(level="layer")}


def zipf_exponent(by_layer: dict[int, np.ndarray], top_k: int) -> float:
    """Exponent whose sorted shares are nearest to the sorted counts, in least squares."""
    recorded = np.mean([np.sort(row)[::-1] for row in by_layer.values()], axis=0)

    def miss(exponent: float) -> float:
        expected = plackett_luce_inclusion(zipf_weights(len(recorded), exponent), top_k) / top_k
        return float(((expected - recorded) ** 2).sum())

    return float(minimize_scalar(miss, bounds=(0, 3), method="bounded").x)


def popularity_files(data: Path, out: Path) -> None:
    """Write the files of models whose counts or order of popularity are known."""
    counts = pd.read_csv(data / "olmoe-mixtral-expert-counts.csv.gz")
    olmoe = shares(counts, "OLMoE-1B-7B-0924", 8)
    spec = {
        "kind": "routing",
        "name": "olmoe-1b-7b",
        "model": "olmoe-1b-7b",
        "experts": 64,
        "top_k": 8,
        "router": {
            "kind": "popularity",
            "layers": list(olmoe),
            "shares": [[float(f"{v:.5f}") for v in row] for row in olmoe.values()],
        },
        "sources": [
            {
                **OLMOE,
                "note": (
                    "Counts exist for layers 0, 7 and 15 only; others behave as their mean. Shares are means over "
                    f"{', '.join(DOMAINS)}. Persistence was not recorded: tokens are independent."
                ),
            }
        ],
    }
    write_atomic(out / "olmoe-1b-7b.yaml", dump_yaml(spec))

    order = pd.read_csv(data / "mixtral-8x7b-popularity-order.csv").sort_values("rank")
    mixtral = shares(counts, "Mixtral-8x7B-v0.1", 2)
    exponent = zipf_exponent(mixtral, 2)
    spec = {
        "kind": "routing",
        "name": "mixtral-8x7b",
        "model": "mixtral-8x7b",
        "experts": 8,
        "top_k": 2,
        "router": {
            "kind": "popularity",
            "zipf": float(f"{exponent:.3f}"),
            "order": [group.expert.tolist() for _, group in order.groupby("layer")],
        },
        "sources": [
            {
                "fields": ["router.order"],
                "cite": "efeslab/fiddler, popularity of experts, Apache-2.0",
                "url": "https://github.com/efeslab/fiddler",
                "note": "Only the order of popularity is published, no counts.",
            },
            {
                **OLMOE,
                "fields": ["router.zipf", "experts", "top_k"],
                "note": (
                    "Fitted to the sorted top-2 counts of Mixtral-8x7B at layers 0, 7 and 15, mean over "
                    f"{', '.join(DOMAINS)}; one exponent stands for all layers. Persistence is unknown."
                ),
            },
        ],
    }
    write_atomic(out / "mixtral-8x7b.yaml", dump_yaml(spec))
    hot = np.mean([row.max() * len(row) for row in mixtral.values()])
    model = plackett_luce_inclusion(zipf_weights(8, exponent), 2).max() * 4
    print(f"mixtral zipf {exponent:.3f}: hottest/mean {model:.3f}, counted {hot:.3f}")


def fitted_files(data: Path, out: Path) -> None:
    """Fit the models whose tokens were recorded in order."""
    fit_routing(
        data / "gpt-oss-20b-decode.npz",
        out / "gpt-oss-20b.yaml",
        model="gpt-oss-20b",
        phase="decode",
        source=Source(
            fields=("*",),
            cite="AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting, Apache-2.0: experts of generated tokens",
            url="https://huggingface.co/datasets/AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting",
            note="Fitted to one half of 214 sequences by fit_routing, seed 0; summary compares the other half with a "
            "sample: recorded, sampled.",
        ),
    )
    fit_routing(
        data / "deepseek-v2-lite-prefill.npz",
        out / "deepseek-v2-lite.yaml",
        model="deepseek-v2-lite",
        phase="prefill",
        skipped=17,
        source=Source(
            fields=("*",),
            cite="deepseek-ai/ESFT, code MIT: experts of prompt tokens of its intent and law tasks",
            url="https://github.com/deepseek-ai/ESFT",
            note="Fitted to one half of 160 prompts by fit_routing, seed 0, without the 17 template tokens that "
            "prompts share; summary compares the other half with a sample: recorded, sampled.",
        ),
    )


def main(arguments: list[str]) -> None:
    """Write all files into this folder."""
    folders = [word for word in arguments if word != "--fit"]
    shared = Path(os.environ.get("MOESIM_SHARED") or HERE.parents[2] / "shared")
    data = Path(folders[0]) if folders else shared / "data" / "routing"
    popularity_files(data, HERE)
    if "--fit" in arguments:
        fitted_files(data, HERE)


if __name__ == "__main__":
    main(sys.argv[1:])
