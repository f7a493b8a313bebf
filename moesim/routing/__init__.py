"""Routing: popularity, affinity and persistence of experts; fitted from traces, sampled, and put into expectations."""
