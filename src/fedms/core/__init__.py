"""Basic tools for all packages of fedms: errors, seeds, files, paths, text. It imports nothing of fedms."""
