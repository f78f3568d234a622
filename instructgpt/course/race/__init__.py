"""The race: the best model that so many FLOPs train. One file an entry, a process of its own, one number."""
