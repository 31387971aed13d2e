"""Workflow of the app: the order of the steps, from a dataset to its derivatives."""
