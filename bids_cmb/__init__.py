"""bids_cmb: cerebral microbleeds found, measured and counted on susceptibility MRI."""

import os

# Half the processor seconds of a network, and results that differ by less than 1e-5. TensorFlow
# reads it at its own import and switches it on by itself on some processors only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

__version__ = "0.1.0"
