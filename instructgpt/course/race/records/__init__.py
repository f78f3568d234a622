"""Our own records, each an entry as anybody's, in the order in which each took over from the one before."""
