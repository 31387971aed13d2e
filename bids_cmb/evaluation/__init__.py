"""Evaluation of detections against a reference."""
