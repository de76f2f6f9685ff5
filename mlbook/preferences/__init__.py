"""The room of the chapter on preference optimisation: exact optima, losses, pairs, and a task small enough to enumerate."""
