"""What several bench scripts use: measured processes, and the pages that get their tables."""
