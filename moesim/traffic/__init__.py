"""Traffic: sampled or recorded requests, as arrays that the simulator consumes."""

from moesim.traffic.readers import Trace, read_trace
from moesim.traffic.requests import Requests, make_requests
from moesim.traffic.sample import sample
from moesim.traffic.streams import stream

__all__ = ["Requests", "Trace", "make_requests", "read_trace", "sample", "stream"]
