"""The one training loop, its optimizers, run directories and metrics."""
