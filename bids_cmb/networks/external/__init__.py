"""Networks of others: SHIVA-CMB's files, Keras HDF5, TensorFlow SavedModels."""
