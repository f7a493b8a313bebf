"""Small worlds for the tests of cost: devices, clusters and models written out, so no catalog is needed."""

import numpy as np

from moesim.cost.load import RoutingLoad
from moesim.spec.hardware import ClusterSpec, DeviceSpec, NodeSpec
from moesim.spec.model import ModelSpec
from moesim.spec.topology import Topology

SOURCE = [{"fields": ["*"], "cite": "test"}]


def device(name="a100", **changes):
    """A100-80-SXM by default: NVIDIA A100 datasheet, 2021: 312 TFLOP/s, 2.039 TB/s."""
    known = {
        "a100": {
            "peaks": {"bf16": "312 TFLOP/s", "fp16": "312 TFLOP/s", "int8": "624 TFLOP/s"},
            "bw": "2.039 TB/s",
        },
        "h100": {
            "peaks": {
                "bf16": "989 TFLOP/s",
                "fp16": "989 TFLOP/s",
                "fp8": "1978 TFLOP/s",
                "int8": "1978 TFLOP/s",
            },
            "bw": "3.35 TB/s",
        },
    }[name]
    known |= changes
    return DeviceSpec.model_validate(
        {
            "kind": "device",
            "name": name,
            "vendor": "nvidia",
            "family": "gpu",
            "architecture": "x",
            "compute": {"units": 108, "peaks": known["peaks"]},
            "memory": {
                "hbm": {"kind": "hbm", "capacity": known.get("capacity", "85.0 GB"), "bandwidth": known["bw"]}
            },
            "main_memory": "hbm",
            "launch_latency": known.get("launch", "4 us"),
            "graph_launch_latency": known.get("graph", "1 us"),
            "power": {"idle": "60 W", "peak": "400 W"},
            "price": {"purchase": "15000 USD", "rental": "2 USD/h"},
            "sources": SOURCE,
        }
    )


def topology(name="a100", nodes=1, per_node=8, link="300 GB/s", nic="25 GB/s", **changes):
    node = NodeSpec.model_validate(
        {
            "kind": "node",
            "name": "node",
            "device": name,
            "devices": per_node,
            "link": {"kind": "nvlink", "topology": "switch", "bandwidth": link, "latency": "2 us"},
            "host": {"cpu": "x", "cores": 64, "memory": {}, "power": {"idle": "500 W", "peak": "1500 W"}},
            "network": {"kind": "infiniband", "nics": per_node, "bandwidth": nic, "latency": "5 us"},
            "sources": SOURCE,
        }
    )
    fabric = {"kind": "fat_tree"} if nodes > 1 else {"kind": "none"}
    cluster = ClusterSpec.model_validate(
        {"kind": "cluster", "name": "test", "node": "node", "nodes": nodes, "fabric": fabric}
    )
    return Topology(device(name, **changes), node, cluster)


def model(name, hidden, vocab, attention, ffns, layers, **more):
    return ModelSpec.model_validate(
        {
            "kind": "model",
            "name": name,
            "architecture": "X",
            "hidden": hidden,
            "vocab": vocab,
            "context": 8192,
            "attentions": attention,
            "ffns": ffns,
            "layers": layers,
            "sources": SOURCE,
            **more,
        }
    )


def llama(**more):
    """Llama-3-8B (config.json of meta-llama/Meta-Llama-3-8B)."""
    return model(
        "llama-3-8b",
        4096,
        128256,
        {"full": {"kind": "gqa", "heads": 32, "kv_heads": 8, "head_dim": 128}},
        {"mlp": {"kind": "dense", "intermediate": 14336}},
        [{"repeat": 32, "layers": [["full", "mlp"]]}],
        **more,
    )


def mixtral(**more):
    """Mixtral-8x7B (config.json of mistralai/Mixtral-8x7B-v0.1)."""
    return model(
        "mixtral-8x7b",
        4096,
        32000,
        {"full": {"kind": "gqa", "heads": 32, "kv_heads": 8, "head_dim": 128}},
        {"moe": {"kind": "moe", "experts": 8, "top_k": 2, "intermediate": 14336}},
        [{"repeat": 32, "layers": [["full", "moe"]]}],
        **more,
    )


def deepseek(**more):
    """DeepSeek-V3 (arXiv:2412.19437 section 4.2)."""
    return model(
        "deepseek-v3",
        7168,
        129280,
        {
            "mla": {
                "kind": "mla",
                "heads": 128,
                "q_lora_rank": 1536,
                "kv_lora_rank": 512,
                "qk_nope_head_dim": 128,
                "qk_rope_head_dim": 64,
                "v_head_dim": 128,
            }
        },
        {
            "mlp": {"kind": "dense", "intermediate": 18432},
            "moe": {
                "kind": "moe",
                "experts": 256,
                "top_k": 8,
                "intermediate": 2048,
                "shared_experts": 1,
                "shared_intermediate": 2048,
                "router_bias": True,
                "groups": 8,
                "top_groups": 4,
            },
        },
        [{"repeat": 3, "layers": [["mla", "mlp"]]}, {"repeat": 58, "layers": [["mla", "moe"]]}],
        **{"weights": {"default": "fp8_block", "activations": "fp8"}, **more},
    )


def uniform(experts, top_k, tokens, ranks_per_token=1.0, nodes_per_token=1.0, straggler=1.0):
    """Uniform independent routing: E (1 - (1 - k/E)^T) distinct experts."""
    count = np.arange(tokens + 1)
    return RoutingLoad(
        distinct=experts * (1 - (1 - top_k / experts) ** count),
        straggler=np.full(tokens + 1, float(straggler)),
        ranks_per_token=ranks_per_token,
        nodes_per_token=nodes_per_token,
    )
