"""fedms: federated fine-tuning of foundation models with a global and a local expert per client, mixed by a gate."""
