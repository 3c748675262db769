"""The frozen backbone, and the arrays that are trained on it. No data, no clients."""
