"""Continuing a prompt: how a token is chosen, and the engine that does it for many prompts at once."""
