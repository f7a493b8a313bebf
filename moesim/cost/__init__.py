"""Cost: what a step takes on a device, op by op: bounds, and estimators that know better."""
