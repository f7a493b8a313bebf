"""The version of moesim, stamped on every manifest."""

__version__ = "0.1.0"
