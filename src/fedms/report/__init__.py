"""Reads finished runs and comparisons, and nothing else: numbers, tables, pictures, one HTML file."""
