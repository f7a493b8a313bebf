"""Reference: one pool, step by step, in plain Python, written from the description of vLLM's V1 scheduler.

No numpy, no compiled code, nothing shared with the simulator: two programs that agree on random worlds are both right,
or wrong in the same way. Rules:

- a step continues running requests in order of admission, then admits waiting ones, first come first served (by class
  under priority scheduling), while sequences, tokens and KV blocks last;
- a request computes its prompt in chunks, then one token (and drafts) per step;
- when blocks run out the last running request (of the least important class) goes back to the head of its queue; no
  admission in that step;
- full prompt blocks are published by hash; nobody's blocks are evicted least recently used first;
- all lanes of a replica start and end their steps together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MASK = (1 << 64) - 1


@dataclass
class Settings:
    seqs: int = 4
    tokens: int = 32
    chunk: int = 32
    block: int = 4
    blocks: int = 64
    max_len: int = 10**6
    watermark: float = 0.0
    admission: str = "vllm"
    chunked: bool = True
    prefill_first: bool = False
    priority: bool = False
    swap: bool = False
    hash_tokens: int = 0
    ahead: bool = False  # asynchronous scheduling; the reference does not know it
    poll: int = 1
    wait: int = 0
    wait_tokens: float = 0.0
    lanes: int = 1
    replicas: int = 1
    drafts: int = 0
    acceptance: float = 0.0
    draft_s: float = 0.0
    swap_s: float = 0.0
    slow: list = field(default_factory=list)
    seed: int = 0


@dataclass
class Prices:
    """Seconds by count, and attention terms as dicts of the fields the cost model documents."""

    overhead: float
    lane: list
    group: list
    head: list
    terms: list


@dataclass(eq=False)
class Request:
    number: int
    arrival: float
    input: int
    output: int
    cls: int = 0
    hashes: list = field(default_factory=list)
    done: int = 0
    generated: int = 0
    private: int = 0
    using: list = field(default_factory=list)
    swapped: bool = False
    status: str = "outside"
    scheduled: float | None = None
    first: float | None = None
    finish: float | None = None
    last: float | None = None
    cached: int = 0
    preemptions: int = 0

    def left(self):
        return self.input + self.generated - self.done

    def decodes(self):
        return self.generated > 0 and self.left() == 1


@dataclass
class Replica:
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    step_s: float = 0.0
    peak: float = 0.0
    gaps: list = field(default_factory=list)


class Lane:
    def __init__(self, settings):
        self.s = settings
        self.free = settings.blocks
        self.users = {}  # hash -> number of requests that use it
        self.idle = []  # hashes nobody uses, least recently used first
        self.queues = {}
        self.unseen = []  # arrived since the engine last looked
        self.since = 0
        self.prefilled = False
        self.waited = 0
        self.running = []
        self.batch = {}  # request number -> tokens in this step
        self.swapped_blocks = 0
        self.hash_blocks = settings.hash_tokens // settings.block if settings.hash_tokens else 1

    # -- blocks
    def available(self):
        return self.free + len(self.idle) * self.hash_blocks

    def short(self, r, tokens):
        return -(-tokens // self.s.block) - r.private - len(r.using) * self.hash_blocks

    def take(self, count):
        if count > self.available():
            return False
        while self.free < count:
            del self.users[self.idle.pop(0)]
            self.free += self.hash_blocks
        self.free -= count
        return True

    def give_back(self, r):
        self.free += r.private
        r.private = 0
        for h in reversed(r.using):
            self.users[h] -= 1
            if self.users[h] == 0:
                self.idle.append(h)
        r.using = []

    def hit(self, r):
        if not self.s.hash_tokens or r.swapped or r.done:
            return []
        found = []
        for h in r.hashes[: (r.input - 1) // self.s.hash_tokens]:
            if h not in self.users:
                break
            found.append(h)
        return found

    def publish(self, r, before):
        if not self.s.hash_tokens:
            return
        size = self.s.hash_tokens
        for j, h in enumerate(r.hashes):
            full = (j + 1) * size
            if before < full <= min(r.done, r.input) and h not in self.users:
                self.users[h] = 1
                r.using = [x for x in r.hashes if x in {*r.using, h}]  # in order of the prompt
                r.private -= self.hash_blocks

    # -- queue
    def queue(self, r):
        return self.queues.setdefault(r.cls if self.s.priority else 0, [])

    def waiting(self):
        return sum(len(q) for q in self.queues.values()) + len(self.unseen)

    def head(self):
        for cls in sorted(self.queues):
            if self.queues[cls]:
                return self.queues[cls][0]
        return None

    # -- one step
    def preempt(self, r, replica):
        self.running.remove(r)
        self.batch.pop(r.number, None)
        if self.s.swap:
            r.swapped = True
            self.swapped_blocks += -(-r.done // self.s.block)
        else:
            r.done = 0
        self.give_back(r)
        r.preemptions += 1
        r.status = "waiting"
        replica.preemptions += 1
        self.queue(r).insert(0, r)

    def tokens(self):
        return sum(self.batch.values())

    def prefill_tokens(self):
        return sum(self.batch[r.number] for r in self.running if r.number in self.batch and not r.decodes())

    def proceed(self, replica, kinds):
        """Continue running requests; say whether one was preempted."""
        preempted = False
        for r in list(self.running):
            kind = "decode" if r.decodes() else "prefill"
            if r not in self.running or r.number in self.batch or kind not in kinds:
                continue
            budget = self.s.tokens - self.tokens()
            n = min(r.left(), budget, self.s.chunk - self.prefill_tokens())
            if kind == "decode":
                n = 1 + self.s.drafts if budget > self.s.drafts else 0
            if n <= 0:
                continue
            while self.short(r, r.done + n) > 0:
                short = self.short(r, r.done + n)
                if self.take(short):
                    r.private += short
                    break
                preempted = True
                loser = self.running[-1]
                if self.s.priority:
                    loser = max(reversed(self.running), key=lambda x: x.cls)
                self.preempt(loser, replica)
                if loser is r:
                    break
            if r in self.running:
                self.batch[r.number] = n
        return preempted

    def admit(self, replica, now):  # noqa: PLR0912 - one decision after the other, as in the text
        while self.head() is not None and len(self.running) < self.s.seqs:
            r = self.head()
            found = self.hit(r)
            done = r.done + len(found) * self.s.hash_tokens
            left = r.input + r.generated - done
            budget = self.s.tokens - self.tokens()
            if r.generated > 0 and left == 1:
                n = 1 + self.s.drafts
                if n > budget:
                    return
            else:
                n = min(left, self.s.chunk - self.prefill_tokens())
                if not self.s.chunked and n < left and self.tokens():
                    return
                n = min(n, budget)
                if n <= 0:
                    return
            cover = done + n
            if self.s.admission == "sglang":
                cover = max(cover, r.input + r.generated)
            if self.s.admission == "trtllm":
                cover = max(cover, r.input + r.output)
            need = max(0, self.short(r, cover) - len(found) * self.hash_blocks)
            woken = sum(self.hash_blocks for h in found if self.users[h] == 0)
            margin = self.s.watermark * self.s.blocks if self.running else 0.0
            if need + woken + margin > self.available():
                return
            for h in found:
                if self.users[h] == 0:
                    self.idle.remove(h)
                self.users[h] += 1
            r.using = list(found) if found else r.using
            replica.cached_tokens += len(found) * self.s.hash_tokens
            if r.scheduled is None:
                r.cached = len(found) * self.s.hash_tokens
                r.scheduled = now
            assert self.take(need)
            r.private += need
            self.queue(r).pop(0)
            self.waited = 0
            if r.swapped:
                r.swapped = False
                self.swapped_blocks += -(-done // self.s.block)
            r.done = done
            r.status = "running"
            self.running.append(r)
            self.batch[r.number] = n

    def schedule(self, replica, now):
        self.batch = {}
        self.swapped_blocks = 0
        if self.s.poll > 1:
            self.look()
        self.batches(replica, now)
        self.prefilled = self.prefill_tokens() > 0

    def look(self):
        """See who came: every so many decode steps, after a prefill, or with nothing to do."""
        self.since += 1
        if not self.running or self.prefilled or self.since >= self.s.poll:
            self.since = 0
            for r in self.unseen:
                self.queue(r).append(r)
            self.unseen = []

    def hold(self):
        """Let new prompts wait for company, so many steps at most after the last admission."""
        queued = [r for q in self.queues.values() for r in q]
        decodes = any(r.number in self.batch and r.decodes() for r in self.running)
        if not self.s.wait or not decodes or not queued:
            self.waited = 0
            return False
        full = self.tokens() + sum(r.left() for r in queued) >= self.s.wait_tokens
        if self.waited >= self.s.wait or full:
            return False
        self.waited += 1
        return True

    def batches(self, replica, now):
        if not self.s.prefill_first:
            if not self.proceed(replica, {"decode", "prefill"}) and not self.hold():
                self.admit(replica, now)
            return
        if not self.proceed(replica, {"prefill"}):
            self.admit(replica, now)
        if self.prefill_tokens() == 0:
            self.proceed(replica, {"decode"})

    def seconds(self, prices):
        decodes = [(r, self.batch[r.number]) for r in self.running if r.number in self.batch and r.decodes()]
        chunks = [
            (r, self.batch[r.number]) for r in self.running if r.number in self.batch and not r.decodes()
        ]
        rows = sum(n for _, n in decodes) + sum(1 for r, n in chunks if n == r.left())
        total = prices.lane[self.tokens()] + prices.head[rows]
        for term in prices.terms:
            window = term["window"]
            if decodes:
                keys = 0
                for r, n in decodes:
                    context = r.done + n
                    keys += 1 if window < 0 else min(context, window) if window else context
                queries = 1 + self.s.drafts
                flop = keys * queries * term["decode_flop"]
                data = keys * term["decode_kv"] + len(decodes) * queries * term["decode_seq"]
                over = between(term.get("decode_grid"), len(decodes), keys / len(decodes))
                total += over * (term["launch"] + max(flop, data))
            if chunks:
                pairs, keys, fresh = 0, 0, 0
                for r, n in chunks:
                    fresh += n
                    if window < 0:
                        pairs, keys = pairs + n, keys + 1
                        continue
                    for i in range(1, n + 1):  # one query at a time
                        pairs += min(r.done + i, window) if window else r.done + i
                    # the first query sees window keys, each further one brings one more into sight
                    keys += min(r.done + n, window + n - 1) if window else r.done + n
                flop = pairs * term["prefill_flop"]
                data = keys * term["prefill_kv"] + fresh * term["prefill_token"]
                over = between(term.get("prefill_grid"), fresh, pairs / fresh)
                total += over * (term["launch"] + max(flop, data))
        return total, bool(decodes)

    def end_step(self, replica, now, accepted):
        for r in list(self.running):
            n = self.batch.get(r.number, 0)
            if n == 0:
                continue
            before, decode, extra = r.done, r.decodes(), 0
            if decode:
                extra = min(accepted(r), r.output - r.generated - 1) if self.s.drafts else 0
                r.done += 1 + extra
            else:
                r.done += n
                replica.prefill_tokens += n
                self.publish(r, before)
            if r.done - extra < r.input + r.generated:
                continue
            if r.generated == 0:
                r.first = now
            else:
                replica.gaps.append(now - r.last)
            replica.gaps += [0.0] * extra
            r.last = now
            r.generated += 1 + extra
            replica.decode_tokens += 1 + extra
            if r.generated >= r.output:
                r.status, r.finish = "finished", now
                self.running.remove(r)
                self.give_back(r)


def between(grid, count, keys):
    """Bilinear in the logarithms of count and keys between the powers of two of the grid, flat outside."""
    if grid is None:
        return 1.0

    def place(value, nodes):
        exponent = min(max(math.log2(max(value, 1.0)), 0.0), nodes - 1.0)
        left = min(math.floor(exponent), nodes - 2)
        return left, exponent - left

    (i, u), (j, v) = place(count, len(grid)), place(keys, len(grid[0]))
    corners = [
        (grid[i][j], (1 - u) * (1 - v)), (grid[i][j + 1], (1 - u) * v),
        (grid[i + 1][j], u * (1 - v)), (grid[i + 1][j + 1], u * v),
    ]  # fmt: skip
    return sum(value * weight for value, weight in corners)


def mix(x):
    """splitmix64 (Steele, Lea, Flood 2014): the published constants."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def acceptance(settings):
    def accepted(r):
        key = mix((mix((settings.seed + r.number) & MASK) + r.generated) & MASK)
        count = 0
        while count < settings.drafts:
            key = mix(key)
            if (key >> 11) / 2**53 >= settings.acceptance:
                break
            count += 1
        return count

    return accepted


def never_fits(r, s):
    blocks = -(-(r.input + r.output + s.drafts) // s.block)
    return r.input + r.output > s.max_len or blocks > s.blocks or (not s.chunked and r.input > s.tokens)


def simulate(requests, homes, settings, prices):
    """Run requests (in order of arrival) on the replicas ``homes`` gives them; returns one ``Replica`` each."""
    assert not settings.ahead
    return [
        _replica([r for r, home in zip(requests, homes, strict=True) if home == k], k, settings, prices)
        for k in range(settings.replicas)
    ]


def _replica(arrivals, number, s, prices):
    replica, lanes = Replica(), [Lane(s) for _ in range(s.lanes)]
    slow = s.slow[number] if s.slow else 1.0
    accepted = acceptance(s)

    def arrive(r):
        if never_fits(r, s):
            r.status = "rejected"
            return
        lane = min(lanes, key=lambda x: x.waiting() + len(x.running))
        (lane.queue(r) if s.poll == 1 else lane.unseen).append(r)
        r.status = "waiting"

    def start(now):
        for lane in lanes:
            lane.schedule(replica, now)
        if not any(lane.batch for lane in lanes):
            return None
        priced = [lane.seconds(prices) for lane in lanes]
        work = prices.overhead + max(seconds for seconds, _ in priced)
        work += prices.group[sum(lane.tokens() for lane in lanes)]
        if s.drafts and any(decodes for _, decodes in priced):
            work += s.draft_s
        work += s.swap_s * sum(lane.swapped_blocks for lane in lanes)
        work *= slow
        replica.steps += 1
        replica.step_s += work
        replica.peak = max(replica.peak, *(1 - lane.available() / s.blocks for lane in lanes))
        return now + work

    end, i = None, 0
    for _ in range(10**6):
        if end is not None and (i == len(arrivals) or end <= arrivals[i].arrival):
            now = end
            for lane in lanes:
                lane.end_step(replica, now, accepted)
            end = start(now)
        elif i < len(arrivals):
            now = arrivals[i].arrival
            while i < len(arrivals) and arrivals[i].arrival == now:
                arrive(arrivals[i])
                i += 1
            if end is None:
                end = start(now)
        else:
            return replica
    raise AssertionError("the reference does not come to an end")
