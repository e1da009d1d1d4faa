"""Faults on purpose: storage that fails, files that are damaged, processes that are killed. For tests and the soak."""
