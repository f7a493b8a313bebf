"""Stateful test of the paged KV blocks with prefix cache, against a model of a dict and a list."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from worlds import open_pool, pricing, setup

from moesim.sim.kernel.blocks import allocate, available, match_prefix, register, release_blocks, take_prefix
from moesim.spec.deployment import Engine
from moesim.traffic.requests import dense, make_requests

BLOCK, REQUESTS = 2, 10


class Blocks(RuleBasedStateMachine):
    @initialize(
        hash_blocks=st.sampled_from([1, 2, 3]),
        total=st.integers(6, 40),
        seed=st.integers(0, 10**6),
        lane=st.sampled_from([0, 1]),
    )
    def build(self, hash_blocks, total, seed, lane):
        rng = np.random.default_rng(seed)
        size = BLOCK * hash_blocks
        inputs = rng.integers(1, 6 * size, REQUESTS)
        keys, offset = [], [0]
        for r in range(REQUESTS):
            story, shared = rng.integers(2), rng.integers(0, 7)
            keys += [
                j * 2 + story if j < shared else 10**6 + 100 * r + j for j in range(-(-inputs[r] // size))
            ]
            offset.append(len(keys))
        self.requests = make_requests(
            np.zeros(REQUESTS), inputs, np.ones(REQUESTS, dtype=int), block_offset=np.array(offset),
            block_hash=dense(np.array(keys)), block_tokens=size,
        )  # fmt: skip
        engine = Engine(max_num_seqs=2, max_num_batched_tokens=64, block_tokens=BLOCK, prefix_caching=True)
        priced = pricing(64, 2, lanes=2)
        self.p = open_pool(setup(engine, priced, kv_blocks=total), self.requests).state
        self.lane, self.size, self.hash_blocks, self.total = lane, size, hash_blocks, total
        self.free, self.users, self.idle = total, {}, []
        self.private = [0] * REQUESTS
        self.using = [[] for _ in range(REQUESTS)]
        self.active, self.done = set(), [0] * REQUESTS

    # -- the model
    def room(self):
        return self.free + len(self.idle) * self.hash_blocks

    def model_take(self, count):
        if count > self.room():
            return False
        while self.free < count:
            del self.users[self.idle.pop(0)]
            self.free += self.hash_blocks
        self.free -= count
        return True

    # -- rules
    @rule(r=st.integers(0, REQUESTS - 1), share=st.floats(0, 1))
    def admit(self, r, share):
        if r in self.active:
            return
        hashes, n = self.requests.blocks(r).tolist(), int(self.requests.input_tokens[r])
        found = []
        for h in hashes[: (n - 1) // self.size]:
            if h not in self.users:
                break
            found.append(h)
        assert match_prefix(self.p, self.lane, r) == len(found) * self.size
        need = -(-n // BLOCK) - len(found) * self.hash_blocks
        woken = sum(self.hash_blocks for h in found if self.users[h] == 0)
        if need + woken > self.room():
            return
        for h in found:
            if h in self.idle:
                self.idle.remove(h)
            self.users[h] += 1
        self.using[r] = found
        assert self.model_take(need)
        self.private[r] = need
        take_prefix(self.p, self.lane, r, len(found) * self.size)
        assert allocate(self.p, self.lane, need)
        self.p.req["held"][r] += need
        self.active.add(r)
        self.done[r] = len(found) * self.size

    @precondition(lambda self: self.active)
    @rule(data=st.data(), tokens=st.integers(1, 9))
    def compute(self, data, tokens):
        r = data.draw(st.sampled_from(sorted(self.active)))
        before = self.done[r]
        after = min(before + tokens, int(self.requests.input_tokens[r]))
        for j, h in enumerate(self.requests.blocks(r).tolist()):
            if before < (j + 1) * self.size <= after and h not in self.users:
                self.users[h] = 1
                self.using[r].append(h)
                self.private[r] -= self.hash_blocks
        self.done[r] = after
        register(self.p, self.lane, r, before, after)

    @precondition(lambda self: self.active)
    @rule(data=st.data(), count=st.integers(0, 12))
    def grow(self, data, count):
        r = data.draw(st.sampled_from(sorted(self.active)))
        got = self.model_take(count)
        assert bool(allocate(self.p, self.lane, count)) is got
        if got:
            self.private[r] += count
            self.p.req["held"][r] += count

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def release(self, data):
        r = data.draw(st.sampled_from(sorted(self.active)))
        release_blocks(self.p, self.lane, r)
        self.free += self.private[r]
        self.private[r] = 0
        order = {h: j for j, h in enumerate(self.requests.blocks(r).tolist())}
        for h in sorted(self.using[r], key=order.get, reverse=True):
            self.users[h] -= 1
            if self.users[h] == 0:
                self.idle.append(h)
        self.using[r] = []
        self.active.discard(r)

    # -- what always holds
    @invariant()
    def the_model_is_the_state(self):
        if not hasattr(self, "p"):
            return
        lane, prefix = self.p.lane[self.lane], self.p.prefix[:, self.lane]
        assert lane["free"] == self.free >= 0
        assert available(self.p, self.lane) == self.room()
        assert {h: n for h, n in enumerate(prefix[0].tolist()) if n >= 0} == self.users
        assert self.p.req["held"].tolist() == self.private
        assert min(self.private) >= 0
        assert self.p.req["shared"].tolist() == [len(u) for u in self.using]
        forward, at = [], int(lane["lru_head"])
        while at >= 0:
            assert prefix[1, at] == (forward[-1] if forward else -1)
            forward.append(at)
            at = int(prefix[2, at])
        assert forward == self.idle
        assert lane["idle"] == len(forward)
        assert lane["lru_tail"] == (forward[-1] if forward else -1)

    @invariant()
    def blocks_are_conserved(self):
        if not hasattr(self, "p"):
            return
        cached = len(self.users) * self.hash_blocks
        assert self.p.lane[self.lane]["free"] + cached + sum(self.p.req["held"].tolist()) == self.total
        flags = self.p.blocks[1]
        users = np.bincount(self.p.blocks[0][flags == 1], minlength=self.requests.distinct_blocks)
        assert [users[h] for h in sorted(self.users)] == [self.users[h] for h in sorted(self.users)]
        other = self.p.lane[1 - self.lane]
        assert other["free"] == self.total
        assert other["idle"] == 0


TestBlocks = Blocks.TestCase
TestBlocks.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
