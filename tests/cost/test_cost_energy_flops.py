"""Energy, money, and FLOPs under each convention."""

import numpy as np
import pytest
from cost_nouns import device, llama, model, topology

from moesim.cost.energy import (
    capex_usd_per_s,
    device_energy_j,
    device_usd_per_s,
    facility_energy_j,
    grid_usd,
    node_energy_j,
)
from moesim.cost.flops import attention_width, flops_per_token
from moesim.errors import DataMissing
from moesim.spec.deployment import Economics


def test_energy_lies_between_idle_and_board_power():
    assert device_energy_j(device(), 0.0, 10.0) == 600
    assert device_energy_j(device(), 10.0, 10.0) == 4000
    assert device_energy_j(device(), 4.0, 10.0, 0.5) == 60 * 10 + 340 * 0.5 * 4
    spans = device_energy_j(device(), np.array([0.0, 5.0]), 10.0)
    assert list(spans) == [600, 600 + 340 * 5]
    with pytest.raises(DataMissing, match="a100 states no power"):
        device_energy_j(device().model_copy(update={"power": None}), 1.0, 1.0)


def test_from_joules_to_dollars():
    """One kWh of IT energy at PUE 1.3 and 0.1 USD/kWh is 0.13 USD."""
    economics = Economics.model_validate({"pue": 1.3, "electricity": "0.1 USD/kWh"})
    assert grid_usd(facility_energy_j(3.6e6, economics), economics) == pytest.approx(0.13)
    assert node_energy_j(topology().node, 10.0) == 5000
    assert node_energy_j(topology().node, 10.0, 1.0) == 15000


def test_prices_take_the_run_then_the_device():
    assert device_usd_per_s(topology(), Economics.model_validate({"rental": "3.6 USD/h"})) == pytest.approx(
        0.001
    )
    assert device_usd_per_s(topology(), Economics()) * 3600 == pytest.approx(2)
    # 30000 USD over 3 years of 8766 h is 1.14 USD/h
    assert capex_usd_per_s(topology(), 1.5) * 3600 == pytest.approx(15000 / (1.5 * 8766))
    bare = topology().device.model_copy(update={"price": type(topology().device.price)()})
    from dataclasses import replace

    with pytest.raises(DataMissing, match="set economics"):
        device_usd_per_s(replace(topology(), device=bare), Economics())
    with pytest.raises(DataMissing, match="purchase price"):
        capex_usd_per_s(replace(topology(), device=bare), 3)


def attention(heads, head_dim, kv=None):
    return {"full": {"kind": "gqa", "heads": heads, "kv_heads": kv or heads, "head_dim": head_dim}}


def test_deepseekmoe_16b_training_flops():
    """arXiv:2401.06066 Table 3: 74.4 T per 4096 tokens; the formula with public dimensions gives 75.9."""
    m = model(
        "deepseekmoe-16b", 2048, 102400, attention(16, 128),
        {
            "mlp": {"kind": "dense", "intermediate": 10944},
            "moe": {
                "kind": "moe", "experts": 64, "top_k": 6, "intermediate": 1408, "shared_experts": 2,
                "shared_intermediate": 2816,
            },
        },
        [{"layers": [["full", "mlp"]]}, {"repeat": 27, "layers": [["full", "moe"]]}],
    )  # fmt: skip
    total = flops_per_token(m, "training", 4096) * 4096
    assert total == pytest.approx(75.9e12, rel=2e-3)
    assert total == pytest.approx(74.4e12, rel=0.025)


def test_llama2_7b_training_flops():
    """Same table: LLaMA2-7B 187.9 T per 4096 tokens."""
    m = model(
        "llama-2-7b", 4096, 32000, attention(32, 128), {"mlp": {"kind": "dense", "intermediate": 11008}},
        [{"repeat": 32, "layers": [["full", "mlp"]]}],
    )  # fmt: skip
    assert flops_per_token(m, "training", 4096) * 4096 == pytest.approx(187.9e12, rel=0.01)


def test_conventions_relate():
    m = llama()
    assert attention_width(m) == 32 * 4096
    assert flops_per_token(m, "linear") == 2 * flops_per_token(m, "macs")
    assert flops_per_token(m, "forward", 1000) - flops_per_token(m, "linear") == 4 * 32 * 4096 * 1000
    assert flops_per_token(m, "training", 1000) == 3 * flops_per_token(m, "forward", 1000)
    tied = llama(tied_embeddings=True)
    assert flops_per_token(tied) == flops_per_token(m)  # a tied head is still a product
