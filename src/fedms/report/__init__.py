"""Reads run folders and nothing else: numbers, tables, pictures, one HTML file."""
