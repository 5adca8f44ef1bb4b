"""Compares the artifacts' outputs with the trained model's in float64, case by case."""
