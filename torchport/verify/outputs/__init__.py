"""Reads the artifacts' outputs and compares them with the trained model's in float64, case by case."""
