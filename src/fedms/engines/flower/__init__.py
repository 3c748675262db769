"""The engine `flower`: sites over Flower's deployment engine.

Only `grid`, `internal` and `app` import flwr, and they are imported where they are used.
"""
