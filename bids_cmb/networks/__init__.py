"""Networks: model cards, weights, inference."""
