"""How fast each part is, as ratios in one run; the door is `python -m benchmarks.throughput`."""
