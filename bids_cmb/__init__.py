"""bids_cmb: cerebral microbleeds found, measured and counted on susceptibility MRI."""

__version__ = "0.1.0"
