"""What carries tasks to clients and updates back."""
