"""Suite ``h20-h800``: kernels of two cards against physics and against fitted kernels, and published throughputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.cost.fitted import Fitted, chain_for
from moesim.cost.ops import gemm
from moesim.cost.precision import Format
from moesim.cost.pricing import FloatArray
from moesim.cost.roofline import Estimator, Launch, Place
from moesim.errors import DataMissing
from moesim.spec.base import load_spec
from moesim.spec.hardware import DeviceSpec
from moesim.study.recorded.hopper_kernels import read_kernels
from moesim.study.recorded.published import published_points, tokens_per_s
from moesim.study.serving.score import Band, check_bands, errors

__all__ = ["FOLDER", "fitted_products", "run", "shares"]

FOLDER = Path("data/measured/h20_h800")
"""Where the kernels stand in the shared data folder."""
_FORMATS = {
    "fp8": Format("fp8_block", 1.0 + 4.0 / 128**2, "fp8", 1.0),
    "bf16": Format("bf16", 2.0, "bf16", 2.0),
}
"""DeepGEMM scales weights in blocks of 128 x 128."""
_KEY = ["family", "phase", "device"]
Progress = Callable[[float, str], None]


def run(
    *,
    shared: Path | None = None,
    cache: Path | None = None,  # noqa: ARG001 - the suite takes seconds
    bands: tuple[Band, ...] = (),
    quick: int = 0,
    bound: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return the suite's answer.

    Metrics: ``share_<family>_<phase>_<device>``, part of the bound that kernels reach; ``faster_than_physics``, how
    many rows lie above it; ``gemm_<device>``, products predicted by kernels fitted on other devices; ``published``,
    throughputs (``published_<name>``: predicted over measured; from the bound it is a ceiling, so above 1).

    Parameters
    ----------
    shared : the shared data folder
    quick : every n-th kernel, and no published throughput
    bound : the roofline bound alone

    Raises
    ------
    DataMissing : no shared data
    """
    if shared is None:
        raise DataMissing("h20-h800: the kernels are part of the shared data: name its folder (--shared)")
    rows = read_kernels(shared / FOLDER)[:: max(quick, 1)]
    figures, groups = shares(rows)
    left = [
        {
            "mode": "gdn", "rows": 18, "reason": "parts of a gated delta layer whose state type is not stated",
        }
    ]  # fmt: skip
    estimator = None if bound else _fitted()
    if estimator is None:
        left.append(
            {
                "mode": "gemm",
                "rows": int((rows["family"] == "gemm").sum()),
                "reason": "no fitted kernels here",
            }
        )
    else:
        for device, part in rows[rows["family"] == "gemm"].groupby("device"):
            found = errors(fitted_products(part, estimator), part["seconds"].to_numpy())
            figures[f"gemm_{device}"] = found.as_dict()
    known = published_points()
    left += [{"mode": "published", "rows": 1, "reason": f"{one.what}: {one.why}"} for one in known.left_out]
    if not quick:
        chain = None if estimator is None else chain_for("sglang", estimator.artifact)
        made = []
        for done, point in enumerate(known.points):
            if progress is not None:
                progress(done / len(known.points), point.name)
            made.append(tokens_per_s(point, chain))
            figures[f"published_{point.name}"] = {
                "n": 1.0, "ratio": made[-1] / point.tokens_per_s_per_device, "predicted_tokens_per_s": made[-1],
                "measured_tokens_per_s": point.tokens_per_s_per_device,
            }  # fmt: skip
        figures["published"] = errors(
            made, [point.tokens_per_s_per_device for point in known.points]
        ).as_dict()
    return {
        "suite": "h20-h800",
        "rows": len(rows) + len(known.points) + len(known.left_out),
        "covered": len(rows) + len(known.points),
        "metrics": figures,
        "groups": groups,
        "bands": check_bands(bands, figures),
        "left_out": left,
        "estimators": "bound" if estimator is None else "fitted, then bound",
    }


def shares(rows: pd.DataFrame) -> tuple[dict[str, dict[str, float]], list[dict[str, Any]]]:
    """Return the part of the bound that kernels reach, as figures and as groups.

    A group's ``median_ape`` and ``bias`` are those of the bound as a prediction.
    """
    share = rows["bound_s"] / rows["seconds"]
    figures: dict[str, dict[str, float]] = {}
    groups = []
    for key, part in rows.assign(share=share).groupby(_KEY):
        family, phase, device = key
        reached = part["share"]
        figures[f"share_{family}_{phase}_{device}"] = {
            "n": float(len(part)), "median": float(reached.median()), "p10": float(reached.quantile(0.1)),
            "p90": float(reached.quantile(0.9)), "most": float(reached.max()), "faster": float((reached > 1).sum()),
        }  # fmt: skip
        found = errors(part["bound_s"].to_numpy(), part["seconds"].to_numpy()).as_dict()
        groups.append(dict(zip(_KEY, key, strict=True)) | found)
    figures["faster_than_physics"] = {
        "n": float(len(rows)), "value": float((share > 1).sum()), "most": float(share.max()),
    }  # fmt: skip
    return figures, groups


def fitted_products(rows: pd.DataFrame, estimator: Estimator) -> FloatArray:
    """Return seconds of dense products [rows] by an ``Estimator``; launches are those of a captured graph.

    Parameters
    ----------
    rows : of one device, with ``m, n, k, dtype``
    """
    device = load_spec(DeviceSpec, str(rows["device"].iloc[0]), "device")
    place = Place(device, Launch(0.0, 0.0, -1))
    made = pd.Series(0.0, index=rows.index)
    for _, part in rows.groupby(["n", "k", "dtype"]):
        n, k, dtype = int(part["n"].iloc[0]), int(part["k"].iloc[0]), str(part["dtype"].iloc[0])
        op = gemm("gemm", "lane", part["m"].to_numpy(dtype=np.int64), n, k, _FORMATS[dtype], 1)
        made[part.index] = estimator.seconds(op, place)
    return np.asarray(made.to_numpy(dtype=np.float64))


def _fitted() -> Fitted | None:
    try:
        return Fitted(framework="sglang")
    except DataMissing:
        return None
