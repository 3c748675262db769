"""What local training minimises, one file for each task."""
