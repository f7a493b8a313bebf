"""Local: a small MoE transformer on this machine, predicted from microbenchmarks and measured beside them."""
