"""Traffic: when requests arrive, how long they are, which prefixes they share, how urgent they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from moesim.errors import SpecError
from moesim.spec.arrivals import (
    Arrivals,
    ClosedLoop,
    Constant,
    Diurnal,
    Gamma,
    OnOff,
    Period,
    Poisson,
    Profile,
    TraceArrivals,
)
from moesim.spec.base import Source, Spec
from moesim.units import Seconds

__all__ = [
    "Arrivals",
    "Clip",
    "ClosedLoop",
    "Constant",
    "Diurnal",
    "Empirical",
    "Fixed",
    "Gamma",
    "Lengths",
    "LogNormal",
    "LogNormalGap",
    "LogNormalTokens",
    "NoSharing",
    "OnOff",
    "Poisson",
    "Prefix",
    "Profile",
    "QuantileGap",
    "Quantiles",
    "Rewrite",
    "Sessions",
    "SharedPrefix",
    "TraceArrivals",
    "TraceBlocks",
    "TraceColumns",
    "TraceFile",
    "TraceLengths",
    "TrafficSpec",
    "UniformRange",
]

Fraction = Annotated[float, Field(ge=0, le=1)]
Correlation = Annotated[float, Field(gt=-1, lt=1)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]


class Fixed(Spec):
    """All requests have the same lengths."""

    kind: Literal["fixed"] = "fixed"
    input: Tokens
    """Prompt tokens."""
    output: Tokens
    """Generated tokens."""


class UniformRange(Spec):
    """Independent uniform integers in [floor(range_ratio * nominal), nominal], as InferenceMAX draws them."""

    kind: Literal["uniform_range"] = "uniform_range"
    input: Tokens
    """Nominal (largest) prompt tokens."""
    output: Tokens
    """Nominal (largest) generated tokens."""
    range_ratio: Fraction
    """Shortest over nominal length. (Newer vLLM clients draw from nominal * (1 -/+ ratio) instead.)"""


class LogNormalTokens(Spec):
    """A log-normal number of tokens, rounded, at least 1."""

    mean: Annotated[float, Field(ge=1, le=2**31 - 1)]
    """Mean tokens (before rounding)."""
    cv: PositiveFloat
    """Standard deviation over mean."""


class LogNormal(Spec):
    """Log-normal input and output lengths."""

    kind: Literal["lognormal"] = "lognormal"
    input: LogNormalTokens
    output: LogNormalTokens
    rank_correlation: Correlation = 0.0
    """Spearman correlation of input and output (Gaussian copula)."""


class Quantiles(Spec):
    """A distribution of token counts as points of its quantile function, linear in between."""

    levels: tuple[Fraction, ...] = Field(min_length=2)
    """Cumulative probabilities from 0 to 1, rising. Two equal tokens in a row are an atom."""
    tokens: tuple[Tokens, ...]
    """Tokens at each level, not falling."""

    @model_validator(mode="after")
    def _is_quantile_function(self) -> Quantiles:
        _check_table(self.levels, self.tokens, "tokens")
        return self


class Empirical(Spec):
    """Measured marginals of input and output, and how their ranks go together."""

    kind: Literal["empirical"] = "empirical"
    input: Quantiles
    output: Quantiles
    joint: tuple[tuple[NonNegativeFloat, ...], ...] = ()
    """Copula histogram [input rank bin][output rank bin]: counts over equal slices of both ranks."""
    rank_correlation: Correlation = 0.0
    """Spearman correlation (Gaussian copula), where there is no ``joint``."""

    @model_validator(mode="after")
    def _one_dependence(self) -> Empirical:
        if self.joint and self.rank_correlation:
            raise ValueError("expected either 'joint' or 'rank_correlation'")
        if len({len(row) for row in self.joint}) > 1:
            raise ValueError("joint: expected rows of one length")
        sums = [sum(row) for row in self.joint] + [sum(column) for column in zip(*self.joint, strict=True)]
        for lines in (sums[: len(self.joint)], sums[len(self.joint) :]):
            if lines and max(lines) - min(lines) > max(1.0, 0.02 * max(lines)):
                raise ValueError("joint: rows must have equal sums, and columns too, or the marginals change")
        return self


class TraceLengths(Spec):
    """The lengths of the trace, in its order."""

    kind: Literal["trace"] = "trace"
    repeat: bool = False
    """Start again when more requests are asked for than the trace has rows."""


Lengths = Annotated[Fixed | UniformRange | LogNormal | Empirical | TraceLengths, Field(discriminator="kind")]


class Clip(Spec):
    """Upper bounds on lengths; one of ``rule`` says what gives way when ``total`` is exceeded."""

    input: Tokens | None = None
    output: Tokens | None = None
    total: Annotated[int, Field(ge=2)] | None = None
    """Input plus output, e.g. the model's context."""
    rule: Literal["shorten_input", "proportional", "shorten_output", "drop"] = "shorten_input"
    """``shorten_input`` keeps the output (Vidur's trace replay); ``proportional`` cuts both by the same share
    (Vidur's length generator); ``drop`` leaves out requests above any bound (and draws others)."""


class NoSharing(Spec):
    """No two requests share a prefix; no block hashes are made."""

    kind: Literal["none"] = "none"


class SharedPrefix(Spec):
    """Requests start with one of a few fixed prefixes (system prompts, few-shot examples, documents)."""

    kind: Literal["shared"] = "shared"
    groups: PositiveInt = 1
    """Different prefixes."""
    tokens: PositiveInt
    """Length of each prefix; part of the input, so shorter inputs share only what they have."""
    zipf: NonNegativeFloat = 0.0
    """Popularity of group g (from 1) is proportional to g to the power of minus this; 0 is uniform."""
    share: Fraction = 1.0
    """Share of requests that have such a prefix at all."""
    on_top: bool = False
    """The prefix comes on top of the drawn input length (vLLM's ``--random-prefix-len``)."""
    block_tokens: PositiveInt = 16
    """Tokens per block hash."""


class QuantileGap(Spec):
    """Time between turns as points of its quantile function, linear in between."""

    kind: Literal["quantiles"] = "quantiles"
    levels: tuple[Fraction, ...] = Field(min_length=2)
    """Cumulative probabilities from 0 to 1, rising."""
    times: tuple[Seconds, ...]
    """Time at each level, not falling."""

    @model_validator(mode="after")
    def _is_quantile_function(self) -> QuantileGap:
        _check_table(self.levels, self.times, "times")
        return self


class LogNormalGap(Spec):
    """Log-normal time between turns."""

    kind: Literal["lognormal"] = "lognormal"
    mean: Period
    cv: PositiveFloat


class Rewrite(Spec):
    """Turns whose prompt keeps only the beginning of the last one: edited, branched or compacted history."""

    prompt: tuple[NonNegativeInt, ...] = Field(min_length=1)
    """Lengths of the last prompt in tokens, rising, at which ``share`` is given; flat outside."""
    share: tuple[Fraction, ...]
    """Share of the turns after such a prompt that keep only part of it."""
    levels: tuple[Fraction, ...] = Field(min_length=2)
    """Cumulative probabilities from 0 to 1, rising."""
    kept: tuple[Fraction, ...]
    """Kept share of the last prompt at each level, not falling."""
    growth: Quantiles
    """Tokens added to what is kept."""

    @model_validator(mode="after")
    def _is_quantile_function(self) -> Rewrite:
        _check_table(self.levels, self.kept, "kept")
        if len(self.prompt) != len(self.share) or any(b <= a for a, b in pairwise(self.prompt)):
            raise ValueError("expected rising values in 'prompt', and as many in 'share'")
        return self


class Sessions(Spec):
    """Conversations: each turn's prompt keeps what the last one said and adds to it.

    ``arrivals`` states the rate of *requests*: sessions start at that rate over the mean number of turns, and
    have done so long before time 0, so that conversations are under way when the run begins.
    ``lengths`` draws every output, and the first prompt unless ``first`` says otherwise.
    """

    kind: Literal["sessions"] = "sessions"
    turns: tuple[NonNegativeFloat, ...] = Field(min_length=1)
    """Relative frequency of sessions with 1, 2, 3, ... turns."""
    first: Quantiles | None = None
    """Prompt tokens of first turns, where ``lengths.input`` stands for all turns together."""
    single: Quantiles | None = None
    """Prompt tokens of sessions that have one turn only, where they differ from ``first``."""
    gap: Annotated[QuantileGap | LogNormalGap, Field(discriminator="kind")]
    """Arrival to arrival between turns. Open loop: it does not wait for the answer."""
    growth: Quantiles
    """Tokens a turn adds to the whole last prompt: the last answer, if sent back, and the new question."""
    rewrite: Rewrite | None = None
    """Turns that keep only part of the last prompt."""
    common_tokens: NonNegativeInt = 0
    """Tokens at the start of every prompt, e.g. the system prompt; part of the input."""
    block_tokens: PositiveInt = 16
    """Tokens per block hash."""

    @model_validator(mode="after")
    def _some_turns(self) -> Sessions:
        if sum(self.turns) <= 0:
            raise ValueError("turns: expected at least one positive frequency")
        return self

    @property
    def mean_turns(self) -> float:
        """Mean turns per session."""
        return sum(count * share for count, share in enumerate(self.turns, 1)) / sum(self.turns)


class TraceBlocks(Spec):
    """The block hashes of the trace."""

    kind: Literal["trace"] = "trace"


Prefix = Annotated[NoSharing | SharedPrefix | Sessions | TraceBlocks, Field(discriminator="kind")]


class TraceColumns(Spec):
    """Names of the columns (CSV, parquet) or keys (JSON lines) of a generic trace."""

    arrival: str = "arrival"
    input: str = "input_tokens"
    output: str = "output_tokens"
    session: str | None = None
    """Integer session id, -1 for none."""
    priority: str | None = None
    """Integer, higher first."""
    blocks: str | None = None
    """List of block hashes (JSON lines and parquet only)."""


class TraceFile(Spec):
    """A recorded trace. ``.gz`` is unpacked on the way."""

    format: Literal["azure", "mooncake", "generic"]
    """``azure``: TIMESTAMP, ContextTokens, GeneratedTokens; ``mooncake``: JSON lines."""
    path: str = Field(min_length=1)
    """Beside the file that names it, or from the working directory; ``$NAME`` comes from the environment."""
    columns: TraceColumns | None = None
    """Only for ``generic``."""
    arrival_unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    """What a generic trace's arrival column holds: a number in this unit, or an ISO 8601 date and time."""
    limit: PositiveInt | None = None
    """Read only so many rows from the start."""
    block_tokens: PositiveInt | None = None
    """Tokens per block hash; none: 512 for ``mooncake``; a generic trace with blocks must say."""

    @model_validator(mode="after")
    def _consistent(self) -> TraceFile:
        if self.format != "generic" and self.columns is not None:
            raise ValueError(f"columns are fixed for the format {self.format!r}")
        if self.columns is not None and self.columns.blocks is not None and self.block_tokens is None:
            raise ValueError("columns.blocks needs block_tokens")
        return self


class TrafficSpec(Spec):
    """Requests offered to a deployment. Every top-level key can be overridden alone by a scenario."""

    kind: Literal["traffic"]
    name: str
    arrivals: Arrivals
    lengths: Lengths
    clip: Clip = Clip()
    prefix: Prefix = NoSharing()
    priorities: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of each class, most urgent first, summing to 1. Class i of n gets the priority n - 1 - i."""
    trace: TraceFile | None = None
    """The recorded trace, where any part above is ``kind: trace``."""
    sources: tuple[Source, ...] = ()
    """Where facts were read; none for made-up traffic."""

    @model_validator(mode="after")
    def _consistent(self) -> TrafficSpec:
        parts = {"arrivals": self.arrivals, "lengths": self.lengths, "prefix": self.prefix}
        traced = [name for name, part in parts.items() if part.kind == "trace"]
        if traced and self.trace is None:
            raise ValueError(f"{traced[0]}: kind trace needs the key 'trace' with format and path")
        if self.prefix.kind == "trace":
            if self.lengths.kind != "trace" or self.lengths.repeat:
                raise ValueError("prefix: block hashes of the trace need the trace's lengths, without repeat")
            if self.trace is not None and self.trace.format == "azure":
                raise ValueError("prefix: an azure trace has no block hashes")
        if self.prefix.kind == "sessions":
            if self.arrivals.kind in {"closed_loop", "trace"}:
                raise ValueError(f"prefix: sessions need an arrival process, not {self.arrivals.kind}")
            if self.lengths.kind == "trace" or self.clip.rule == "drop":
                raise ValueError("prefix: sessions need synthetic lengths, and a clip rule other than drop")
        if self.prefix.kind == "shared" and self.prefix.on_top and self.clip.rule == "drop":
            raise ValueError("prefix: on_top needs a clip rule other than drop")
        if self.priorities and abs(sum(self.priorities.values()) - 1) > 1e-6:
            raise ValueError(f"priorities: shares must sum to 1, not {sum(self.priorities.values()):g}")
        return self

    @property
    def mean_rate(self) -> float | None:
        """Long-run request rate in request/s; None where the trace or the server decides it."""
        arrivals = self.arrivals
        if isinstance(arrivals, OnOff):
            on, off = arrivals.mean_on, arrivals.mean_off
            return (arrivals.rate_on * on + arrivals.rate_off * off) / (on + off)
        if isinstance(arrivals, ClosedLoop | TraceArrivals):
            return None
        return arrivals.rate

    def at_rate(self, rate: float) -> TrafficSpec:
        """Return the same traffic at another mean rate (request/s), the shape of its arrivals unchanged.

        Raises
        ------
        SpecError : the rate is not positive, or the arrivals are a trace's or a closed loop's
        """
        now = self.mean_rate
        if now is None:
            raise SpecError(f"traffic {self.name}: arrivals of kind {self.arrivals.kind} have no rate to set")
        if not 0 < rate < float("inf"):
            raise SpecError(f"traffic {self.name}: rate {rate:g} request/s: expected a positive rate")
        change: dict[str, Any] = {"rate": rate}
        if isinstance(self.arrivals, OnOff):
            factor = rate / now
            change = {"rate_on": self.arrivals.rate_on * factor, "rate_off": self.arrivals.rate_off * factor}
        return self.model_copy(update={"arrivals": self.arrivals.model_copy(update=change)})


def _check_table(levels: tuple[float, ...], values: tuple[float, ...], name: str) -> None:
    if len(levels) != len(values):
        raise ValueError(f"expected as many {name} as levels, {len(values)} and {len(levels)} given")
    if levels[0] != 0 or levels[-1] != 1 or any(b <= a for a, b in pairwise(levels)):
        raise ValueError("levels must rise strictly from 0 to 1")
    if any(b < a for a, b in pairwise(values)):
        raise ValueError(f"{name} must not fall")
