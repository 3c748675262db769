"""Methods on the same partitions and the same budget: which runs that takes, and what they come to."""
