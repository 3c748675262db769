"""Engines carry tasks to clients, and answers back."""
