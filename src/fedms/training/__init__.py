"""Training on one device: inputs, the prefix cache, running experts and training them. No federation."""
