"""Every model of the catalog can be priced and planned on catalog hardware, and obeys the same laws."""

import numpy as np
import pytest
from cost_nouns import uniform

from moesim.cost.memory import memory_plan
from moesim.cost.stepprice import step_pricing
from moesim.errors import NoResult
from moesim.files import catalog_names
from moesim.spec.base import load_spec
from moesim.spec.deployment import Pool
from moesim.spec.model import ModelSpec, MoeFfn
from moesim.spec.parameters import parameter_count, weight_bytes
from moesim.spec.topology import resolve_cluster

POOL = Pool.model_validate({"engine": {"max_num_batched_tokens": 64, "max_num_seqs": 8}})


def loads(model, tokens):
    return {n: uniform(f.experts, f.top_k, tokens) for n, f in model.ffns.items() if isinstance(f, MoeFfn)}


@pytest.mark.parametrize("name", catalog_names("model"))
@pytest.mark.parametrize("cluster", ["dgx-h100", "dgx-a100"])
def test_steps_of_catalog_models(name, cluster):
    model, where = load_spec(ModelSpec, name, "model"), resolve_cluster(cluster)
    if model.encoder:
        with pytest.raises(NoResult, match="encoder-decoder"):
            step_pricing(model, where, POOL, None, loads(model, 64))
        return
    price = step_pricing(model, where, POOL, None, loads(model, 64))
    for table in (price.lane_s, price.group_s, price.head_s):
        assert np.all(np.isfinite(table))
        assert np.all(np.diff(table, axis=1) >= -1e-18)
    count = parameter_count(model)
    read = count.active - (0 if model.tied_embeddings else count.embedding)
    # weights read for one token: the active ones, at the checkpoint's mean width or wider parts of it
    assert 0.45 * read <= price.bytes_per_step <= 2.02 * read
    assert price.flop_per_token == pytest.approx(2 * read, rel=1e-9)
    assert all(term.decode_kv_s >= 0 for term in price.attention)


@pytest.mark.parametrize("name", catalog_names("model"))
def test_memory_of_catalog_models(name):
    """Enough H200 nodes hold any of them, and the fullest device holds about its even share."""
    model = load_spec(ModelSpec, name, "model")
    if model.encoder:
        return
    where = resolve_cluster("8x dgx-h200")
    heads = [a.heads for a in model.attentions.values() if hasattr(a, "heads")]
    keys = [a.key_heads for a in model.attentions.values() if hasattr(a, "key_heads")]
    pool = {
        "engine": {"max_num_batched_tokens": 2048},
        "parallelism": {"tp": int(np.gcd.reduce(heads + keys + [8]))},
    }
    need = weight_bytes(model) / where.device.main.capacity
    pool["parallelism"]["pp"] = max(1, 2 ** int(np.ceil(np.log2(2 * need / pool["parallelism"]["tp"]))))
    plan = memory_plan(model, where, Pool.model_validate(pool))
    assert plan.kv_blocks_per_lane > 0
    devices = pool["parallelism"]["tp"] * pool["parallelism"]["pp"]
    assert weight_bytes(model) / devices * 0.9 < plan.weight_bytes < 2 * weight_bytes(model) / devices + 4e9
