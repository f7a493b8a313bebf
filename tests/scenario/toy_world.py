"""A small world of files, apart from the catalog, for the tests of scenarios and of the command line."""

from __future__ import annotations

from pathlib import Path

DEVICE = """\
kind: device
name: toy
vendor: ACME
family: gpu
architecture: toy
compute: {units: 4, peaks: {bf16: 100 TFLOP/s, fp16: 100 TFLOP/s, fp32: 10 TFLOP/s}}
memory:
  hbm: {kind: hbm, capacity: 80 GB, bandwidth: 2 TB/s}
main_memory: hbm
launch_latency: 4 us
graph_launch_latency: 1 us
power: {idle: 50 W, peak: 400 W}
price: {rental: 2 USD/h}
sources:
  - {fields: ["*"], cite: invented for tests}
"""
NODE = """\
kind: node
name: toy-4
device: device.yaml
devices: 4
link: {kind: nvlink, topology: switch, bandwidth: 300 GB/s, latency: 2 us}
host:
  cpu: toy
  cores: 8
  memory:
    ddr: {kind: ddr, capacity: 512 GB, bandwidth: 100 GB/s}
  link_bandwidth: 25 GB/s
sources:
  - {fields: ["*"], cite: invented for tests}
"""
CLUSTER = """\
kind: cluster
name: toy-cluster
node: node.yaml
nodes: 1
"""
MODEL = """\
kind: model
name: tiny-moe
architecture: MixtralForCausalLM
hidden: 512
vocab: 1000
context: 4096
attentions:
  full: {kind: gqa, heads: 8, kv_heads: 4, head_dim: 64}
ffns:
  experts: {kind: moe, experts: 8, top_k: 2, intermediate: 1024}
layers:
  - repeat: 4
    layers: [[full, experts]]
sources:
  - {fields: ["*"], cite: invented for tests}
"""
TRAFFIC = """\
kind: traffic
name: steady
arrivals: {kind: poisson, rate: 20 request/s}
lengths: {kind: fixed, input: 128, output: 16}
"""
SCENARIO = """\
kind: scenario
name: toy
title: A toy
cluster: cluster.yaml
model: model.yaml
traffic: traffic.yaml
deployment:
  serve:
    replicas: 2
    parallelism: {tp: 2}
    engine: {max_num_seqs: 32, max_num_batched_tokens: 512}
targets: {ttft: 1 s, tpot: 50 ms}
run: {requests: 50}
variants:
  fast:
    about: Twice the bandwidth
    device: {memory: {hbm: {bandwidth: 4 TB/s}}}
  wide:
    deployment: {serve: {parallelism: {tp: 4}, replicas: 1}}
  busy:
    traffic: {arrivals: {rate: 40 request/s}}
  busier:
    traffic: {arrivals: {rate: 60 request/s}}
"""
FILES = {
    "device.yaml": DEVICE,
    "node.yaml": NODE,
    "cluster.yaml": CLUSTER,
    "model.yaml": MODEL,
    "traffic.yaml": TRAFFIC,
    "toy.yaml": SCENARIO,
}


def build(folder: Path) -> Path:
    """Write the world's files; return the scenario."""
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder / "toy.yaml"
