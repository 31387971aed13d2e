"""Architectures of the networks, each built with Keras from its arguments."""
