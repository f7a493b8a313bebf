"""Deployment nouns: parallelism, engine, pools of replicas, routers, speculation, faults, scaling, targets, run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesim.spec.base import Spec
from moesim.spec.placement import PlacementSpec
from moesim.units import Bytes, Seconds, UsdPerHour, UsdPerKwh

__all__ = [
    "Autoscaling",
    "Deployment",
    "Economics",
    "Engine",
    "Fault",
    "Parallelism",
    "Pool",
    "PrecisionChoice",
    "ReplicaRouter",
    "Run",
    "Speculation",
    "Straggler",
    "Targets",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class Parallelism(Spec):
    """How one replica is spread over devices: ``tp * pp * dp`` devices, experts over ``ep`` of them."""

    tp: PositiveInt = 1
    """Tensor parallel degree of attention and dense layers."""
    pp: PositiveInt = 1
    """Pipeline stages."""
    dp: PositiveInt = 1
    """Attention data parallel ranks: each has its own queue and KV cache, all run in lock-step."""
    ep: PositiveInt = 1
    """Expert parallel degree: ranks the experts are spread over, inside one stage's ``tp * dp`` devices."""

    @model_validator(mode="after")
    def _ep_divides(self) -> Parallelism:
        if (self.tp * self.dp) % self.ep:
            raise ValueError(f"ep {self.ep} must divide tp * dp = {self.tp * self.dp}")
        return self

    @property
    def devices(self) -> int:
        """Devices of one replica."""
        return self.tp * self.pp * self.dp

    @property
    def moe_tp(self) -> int:
        """Tensor parallel degree inside each expert."""
        return self.tp * self.dp // self.ep


class Engine(Spec):
    """The serving engine's scheduler and memory settings, in vLLM's and SGLang's terms."""

    flavor: Literal["vllm", "sglang", "trtllm"] = "vllm"
    """Whose kernels, host time, defaults and memory accounting apply."""
    version: str = ""
    """Version that will run, to be warned where kernels or host time were measured with others; empty: any."""
    max_num_seqs: PositiveInt = 256
    """Most sequences in one step, per attention rank."""
    max_num_batched_tokens: PositiveInt = 8192
    """Most tokens in one step, per attention rank (the chunk, with chunked prefill)."""
    chunked_prefill: bool = True
    """Prompts are cut to fill the step; without it a prompt is prefilled whole and alone."""
    prefill_chunk: PositiveInt | None = None
    """Most prefill tokens of one step, where less than ``max_num_batched_tokens``."""
    prefill_first: bool = False
    """Prefill steps go before decode steps and never mix with them (SGLang's default without mixed chunks)."""
    async_scheduling: bool = False
    """A step is chosen while the one before it runs: it knows neither who came meanwhile nor the seats and blocks of
    those who finish (vLLM's ``--async-scheduling``). Hides host time, costs a newcomer one step."""
    poll_steps: PositiveInt = 1
    """Decode steps between two looks for new requests (SGLang's ``--scheduler-recv-interval``); a prefill step or an
    idle engine looks at once."""
    wait_steps: NonNegativeInt = 0
    """Decode steps that new prompts wait for company at most (TensorRT-LLM's ``batch_wait_timeout_iters``)."""
    wait_fill: Fraction = 0.0
    """Share of ``max_num_batched_tokens`` that ends the wait (``batch_wait_max_tokens_ratio``)."""
    block_tokens: PositiveInt = 16
    """Tokens in one KV block."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of device memory the engine may use (SGLang: ``mem_fraction_static``)."""
    kv_blocks: PositiveInt | None = None
    """KV blocks per attention rank, where the engine's log states them; none: derived from memory."""
    watermark: Fraction = 0.0
    """Share of blocks kept free when a request is admitted."""
    prefix_caching: bool = False
    """Reuse KV blocks of equal prompt prefixes (needs block hashes or sessions in the traffic)."""
    preemption: Literal["recompute", "swap"] = "recompute"
    """What happens to the youngest request when blocks run out."""
    scheduling: Literal["fcfs", "priority"] = "fcfs"
    max_model_len: PositiveInt | None = None
    """Longest request in tokens; longer ones are rejected. None: the model's context."""
    cuda_graphs: bool = True
    expert_exchange: Literal["auto", "gather", "all_to_all"] = "auto"
    """How tokens of several attention ranks reach their experts: every rank gathers all tokens and the results are
    reduced and scattered (``gather``), or each copy goes to its expert's rank (``all_to_all``, DeepEP and its like).
    ``auto``: gather inside a node, as vLLM (allgather_reducescatter), SGLang (no a2a backend) and TensorRT-LLM
    (without MNNVL) do unless told otherwise, all-to-all across nodes."""
    moe_backend: Literal["auto", "trtllm", "cutlass", "deepgemm", "triton", "marlin"] = "auto"
    """Which kernels run routed experts, where times of several were measured; engines share these libraries, so
    another engine's measurement of the same kernel serves. ``auto``: the first that was measured for the flavor."""
    step_overhead: Seconds | None = None
    """Host time per step that the device waits for: scheduler, input preparation, sampling. None: what was fitted on
    measured runs of the flavor, 0 without calibration."""
    runtime_reserve: Bytes | None = None
    """Device memory outside weights, activations and KV (context, NCCL, graphs); none: per flavor."""


class ReplicaRouter(Spec):
    """Which replica a request goes to."""

    policy: Literal[
        "round_robin",
        "random",
        "least_requests",
        "least_tokens",
        "power_of_two",
        "prefix_aware",
        "session_sticky",
    ] = "round_robin"


class Speculation(Spec):
    """Speculative decoding or multi-token prediction, with a stated acceptance model."""

    draft_tokens: PositiveInt
    """Tokens proposed per step."""
    acceptance: Fraction
    """Probability that a proposed token is accepted, given that those before it were."""
    draft_cost: NonNegativeFloat = 0.0
    """Seconds of drafting over seconds of one plain decode step of the target model."""


class Pool(Spec):
    """Replicas that do one kind of work."""

    replicas: PositiveInt = 1
    parallelism: Parallelism = Parallelism()
    engine: Engine = Engine()
    router: ReplicaRouter = ReplicaRouter()
    cluster: str = ""
    """Cluster of this pool, where it differs from the scenario's."""
    placement: PlacementSpec | None = None
    """Where every expert of a replica sits; none: contiguous blocks without replicas."""


class PrecisionChoice(Spec):
    """Storage and arithmetic types, where they differ from the checkpoint's."""

    weights: Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "nvfp4", "mxfp4", "int4"] | None = (
        None
    )
    experts: Literal["fp32", "bf16", "fp16", "fp8", "fp8_block", "int8", "nvfp4", "mxfp4", "int4"] | None = (
        None
    )
    activations: Literal["fp32", "bf16", "fp16", "fp8", "int8", "fp4"] | None = None
    kv_cache: Literal["bf16", "fp16", "fp8", "int8", "fp4"] | None = None


class Fault(Spec):
    """One replica stops at a time and returns later. Its requests go to the others, which compute their tokens anew."""

    pool: Literal["serve", "prefill", "decode"] = "serve"
    replica: NonNegativeInt
    at: Seconds
    repair: Seconds


class Straggler(Spec):
    """One replica runs slower for a while."""

    pool: Literal["serve", "prefill", "decode"] = "serve"
    replica: NonNegativeInt
    slowdown: Annotated[float, Field(ge=1)]
    """Step time over healthy step time."""
    at: Seconds = 0.0
    duration: Seconds | None = None


class Autoscaling(Spec):
    """Replicas follow the queue: more above ``high`` waiting requests on each, one less below ``low``."""

    policy: Literal["queue"] = "queue"
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt
    interval: Seconds
    """Time between decisions."""
    startup: Seconds
    """From decision to first request: load weights, capture graphs."""
    high: PositiveFloat = 4.0
    low: NonNegativeFloat = 0.5


class Deployment(Spec):
    """Either one pool that does everything (``serve``), or ``prefill`` and ``decode`` pools with KV moved across."""

    serve: Pool | None = None
    prefill: Pool | None = None
    decode: Pool | None = None
    precision: PrecisionChoice = PrecisionChoice()
    calibration: str = "shipped"
    """What prices steps, best first: ``shipped`` (kernels and host time fitted on NVIDIA GPUs, elsewhere the bound),
    ``tables`` (the same, and exactly what the extra ``silicon`` measured wherever a product has a measured size),
    ``none`` (the roofline bound alone), or the path of an artifact of ``moesim calibrate fit``, without suffix."""
    speculation: Speculation | None = None
    faults: tuple[Fault, ...] = ()
    stragglers: tuple[Straggler, ...] = ()
    autoscaling: Autoscaling | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> Deployment:
        split = self.prefill is not None and self.decode is not None
        if (self.serve is not None) == split or (self.prefill is None) != (self.decode is None):
            raise ValueError("expected either 'serve', or both 'prefill' and 'decode'")
        return self

    @property
    def pools(self) -> dict[str, Pool]:
        """Pools by name, in the order a request passes them."""
        named = {"serve": self.serve, "prefill": self.prefill, "decode": self.decode}
        return {name: pool for name, pool in named.items() if pool is not None}


class Targets(Spec):
    """What good service is; a request that meets all per-request limits counts towards goodput."""

    ttft: Seconds | None = None
    tpot: Seconds | None = None
    e2e: Seconds | None = None
    percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0
    """The percentile that must meet each limit."""


class Economics(Spec):
    """Money and power around the devices."""

    electricity: UsdPerKwh = 0.1
    pue: Annotated[float, Field(ge=1)] = 1.3
    rental: UsdPerHour | None = None
    """Price of one device per hour; none: the device's own, where public."""
    carbon_g_per_kwh: NonNegativeFloat | None = None


class Run(Spec):
    """When a run starts to count and when it stops."""

    seed: NonNegativeInt = 0
    requests: PositiveInt | None = None
    """Stop accepting arrivals after this many."""
    horizon: Seconds | None = None
    """Stop at this time whatever is unfinished."""
    warmup_requests: NonNegativeInt = 0
    """First arrivals left out of the metrics."""
    warmup: Seconds = 0.0
    """Arrivals before this time are left out of the metrics."""
    cooldown_requests: NonNegativeInt = 0
    """Last arrivals left out of the metrics."""
    timeline_points: PositiveInt = 2000
    """Most points kept per replica of queue, batch and KV over time."""
