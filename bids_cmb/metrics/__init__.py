"""Metrics: matching of detections and reference, detection scores, agreement."""
