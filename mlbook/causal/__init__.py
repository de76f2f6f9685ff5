"""What the chapter on causal inference uses."""
