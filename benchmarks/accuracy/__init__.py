"""How well detectors and the anatomy networks do."""
