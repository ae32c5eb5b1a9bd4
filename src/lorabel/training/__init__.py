"""The training loop, its optimiser, its random numbers and its resumable state."""
