"""Models that others trained, in and out: the layouts of `transformers` and of llama.cpp, and the hub."""
