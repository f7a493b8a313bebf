"""Traffic: sampled or recorded requests, as arrays that the simulator consumes."""

from moesim.streams import stream
from moesim.traffic.readers import Trace, read_trace
from moesim.traffic.requests import Requests, make_requests
from moesim.traffic.sample import sample

__all__ = ["Requests", "Trace", "make_requests", "read_trace", "sample", "stream"]
