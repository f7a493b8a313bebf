"""Paged KV blocks of one lane: allocation, prefix cache with reference counts, LRU eviction of idle cached blocks."""
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"

from __future__ import annotations

import numba as nb

__all__ = ["allocate", "available", "match_prefix", "register", "release_blocks", "take_prefix"]


@nb.njit(cache=True)
def available(p, lane):
    """Blocks that a request could get: free ones, and cached ones that nobody uses, less those given back too late."""
    return p.lane[lane].free + p.lane[lane].idle * p.cfg[0].hash_blocks - p.lane[lane].late_blocks


@nb.njit(cache=True)
def _unlink(p, lane, block):
    before, after = p.prefix[1, lane, block], p.prefix[2, lane, block]
    if before >= 0:
        p.prefix[2, lane, before] = after
    else:
        p.lane[lane].lru_head = after
    if after >= 0:
        p.prefix[1, lane, after] = before
    else:
        p.lane[lane].lru_tail = before
    p.lane[lane].idle -= 1


@nb.njit(cache=True)
def _append(p, lane, block):
    tail = p.lane[lane].lru_tail
    p.prefix[1, lane, block] = tail
    p.prefix[2, lane, block] = -1
    if tail >= 0:
        p.prefix[2, lane, tail] = block
    else:
        p.lane[lane].lru_head = block
    p.lane[lane].lru_tail = block
    p.lane[lane].idle += 1


@nb.njit(cache=True)
def allocate(p, lane, count):
    """Take ``count`` blocks, evicting the longest idle cached blocks; False, and nothing taken, if short."""
    if count <= 0:
        return True
    if available(p, lane) < count:
        return False
    if p.lane[lane].free < count:
        while p.lane[lane].free < count:
            block = p.lane[lane].lru_head
            _unlink(p, lane, block)
            p.prefix[0, lane, block] = -1
            p.lane[lane].free += p.cfg[0].hash_blocks
    p.lane[lane].free -= count
    return True


@nb.njit(cache=True)
def match_prefix(p, lane, r):
    """Prompt tokens of request ``r`` cached on ``lane``: whole hash blocks, and never the last prompt token."""
    tokens = p.cfg[0].hash_tokens
    if not p.cfg[0].prefix or tokens == 0:
        return 0
    lo, n = p.req[r].block_lo, p.req[r].block_n
    usable = min(n, (p.req[r].input - 1) // tokens)
    hit = 0
    while hit < usable and p.prefix[0, lane, p.blocks[0, lo + hit]] >= 0:
        hit += 1
    return hit * tokens


@nb.njit(cache=True)
def take_prefix(p, lane, r, tokens):
    """Count the request as a user of the cached blocks of its first ``tokens`` prompt tokens."""
    lo = p.req[r].block_lo
    for j in range(tokens // p.cfg[0].hash_tokens):
        block = p.blocks[0, lo + j]
        if p.prefix[0, lane, block] == 0:
            _unlink(p, lane, block)
        p.prefix[0, lane, block] += 1
        p.blocks[1, lo + j] = 1
        p.req[r].shared += 1


@nb.njit(cache=True)
def register(p, lane, r, before, after):
    """Publish the hash blocks that became complete as the request went from ``before`` to ``after`` computed tokens."""
    tokens = p.cfg[0].hash_tokens
    if not p.cfg[0].prefix or tokens == 0:
        return
    lo = p.req[r].block_lo
    limit = min(after, p.req[r].input) // tokens
    for j in range(before // tokens, min(limit, p.req[r].block_n)):
        block = p.blocks[0, lo + j]
        # a twin computed at the same time by another request stays private
        if (
            p.blocks[1, lo + j] == 0
            and p.prefix[0, lane, block] < 0
            and p.req[r].held >= p.cfg[0].hash_blocks
        ):
            p.prefix[0, lane, block] = 1
            p.blocks[1, lo + j] = 1
            p.req[r].shared += 1
            p.req[r].held -= p.cfg[0].hash_blocks


@nb.njit(cache=True)
def release_blocks(p, lane, r):
    """Give all blocks of request ``r`` back; cached ones become idle, last block first so that it is evicted first."""
    p.lane[lane].free += p.req[r].held
    p.req[r].held = 0
    if p.req[r].shared > 0:
        p.req[r].shared = 0
        lo = p.req[r].block_lo
        for j in range(p.req[r].block_n - 1, -1, -1):
            if p.blocks[1, lo + j]:
                p.blocks[1, lo + j] = 0
                block = p.blocks[0, lo + j]
                p.prefix[0, lane, block] -= 1
                if p.prefix[0, lane, block] == 0:
                    _append(p, lane, block)
