"""Collectives: time all-reduce and its kin between processes, by torch.distributed (gloo on CPU, NCCL on GPUs)."""

from __future__ import annotations

import datetime as dt
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from moesim.calibrate.measure.record import Measurement, Point
from moesim.calibrate.measure.timing import spread

__all__ = ["COLLECTIVES", "measure_collectives"]

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
_BLOCK_S = 5e-3
_PATIENCE = dt.timedelta(seconds=120)


def measure_collectives(points: Sequence[Point], repeats: int) -> list[Measurement]:
    """Measure collectives among ``ranks`` processes of this machine; all points have the same ``ranks``.

    ``size`` is what an all-reduce reduces, what an all-gather has gathered, what a reduce-scatter starts from and
    what one rank of an all-to-all sends: bytes per rank, as in ``moesim.cost.collectives``. The time of a block
    is the slowest rank's. Results are checked against sums and orders known in closed form.

    Returns
    -------
    one record per point, in order; ``failed`` where the backend cannot do it
    """
    if not points:
        return []
    import torch.multiprocessing as processes

    ranks = points[0]["ranks"]
    with tempfile.TemporaryDirectory(prefix="moesim-ranks-") as folder:
        context = processes.get_context("spawn")
        queue = context.SimpleQueue()
        workers = [
            context.Process(
                target=_rank, args=(rank, ranks, folder, list(points), repeats, queue), daemon=True
            )
            for rank in range(ranks)
        ]
        for worker in workers:
            worker.start()
        try:
            found = _collected(queue, workers)
        finally:
            for worker in workers:
                worker.join(timeout=20)
                if worker.is_alive():
                    worker.terminate()
    return (
        found
        if found is not None
        else [Measurement.untimed(point, "failed", "a rank died; see its message above") for point in points]
    )


def _collected(queue: Any, workers: Sequence[Any]) -> list[Measurement] | None:
    """Wait for rank 0's records; None when a rank died first."""
    while queue.empty():
        if any(worker.exitcode not in {None, 0} for worker in workers):
            return None
        time.sleep(0.02)
    records: list[Measurement] = queue.get()
    return records


def _rank(rank: int, ranks: int, folder: str, points: list[Point], repeats: int, queue: Any) -> None:
    """Run one process of the group; rank 0 reports."""
    import torch
    import torch.distributed as group

    gpu = points[0].device == "cuda"
    if gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    store = Path(folder, "store").as_uri()
    backend = "nccl" if gpu else "gloo"
    group.init_process_group(backend, init_method=store, rank=rank, world_size=ranks, timeout=_PATIENCE)
    try:
        records = [_one(point, rank, ranks, repeats) for point in points]
        group.barrier()
    finally:
        group.destroy_process_group()
    if rank == 0:
        queue.put(records)


def _one(point: Point, rank: int, ranks: int, repeats: int) -> Measurement:
    try:
        call, check = _prepare(point, rank, ranks)
        call()
        error = _worst(check(), point.device)
    except (RuntimeError, NotImplementedError) as problem:  # every rank meets the same refusal
        return Measurement.untimed(point, "failed", str(problem).splitlines()[0][:200])
    if error != 0.0:
        return Measurement.untimed(point, "wrong_result", f"error {error:g}", error)
    samples = _timed(call, repeats, point.device)
    found = spread(samples)
    return Measurement(
        point,
        found.median,
        found.p10,
        found.p90,
        found.least,
        found.repeats,
        0.0,
        float(point["size"]),
        error,
        0.0,
        "monotonic",
    )


def _prepare(point: Point, rank: int, ranks: int) -> tuple[Callable[[], Any], Callable[[], float]]:
    """Return the collective and its check; whole numbers, so that sums are exact in float32."""
    import torch
    import torch.distributed as group

    # newer releases renamed these two
    gather = getattr(group, "all_gather_single", None) or group.all_gather_into_tensor
    scatter = getattr(group, "reduce_scatter_single", None) or group.reduce_scatter_tensor
    where = f"cuda:{rank}" if point.device == "cuda" else "cpu"
    count = max(ranks, point["size"] // 4 // ranks * ranks)
    pattern = torch.arange(count, device=where).remainder(1000).float()
    mine = pattern + rank
    total = pattern * ranks + ranks * (ranks - 1) / 2
    part = count // ranks
    own = slice(rank * part, (rank + 1) * part)
    if point.op == "all_reduce":
        work = mine.clone()
        want = total

        def run() -> None:
            group.all_reduce(work)
    elif point.op == "all_gather":
        work, piece = torch.empty_like(pattern), pattern[own].clone()
        want = pattern

        def run() -> None:
            gather(work, piece)
    elif point.op == "reduce_scatter":
        work, want = torch.empty_like(pattern[own]), total[own]

        def run() -> None:
            scatter(work, mine)
    else:
        work = torch.empty_like(pattern)
        want = torch.cat([pattern[own] + other for other in range(ranks)])

        def run() -> None:
            group.all_to_all_single(work, mine)

    def check() -> float:
        return float((work - want).abs().max())

    return run, check


def _worst(value: float, device: str) -> float:
    """Return the largest of the ranks' values, the same on every rank."""
    import torch
    import torch.distributed as group

    found = torch.tensor([value if math.isfinite(value) else 1e30], device=device)
    group.all_reduce(found, op=group.ReduceOp.MAX)
    return float(found[0])


def _timed(call: Callable[[], Any], repeats: int, device: str) -> list[float]:
    import torch
    import torch.distributed as group

    def block(count: int) -> float:
        group.barrier()
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(count):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return _worst((time.perf_counter() - begin) / count, device)

    each = min(block(1) for _ in range(3))
    count = max(1, min(2000, round(_BLOCK_S / each)))
    return [block(count) for _ in range(repeats)]
