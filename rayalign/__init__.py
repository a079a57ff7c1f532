"""rayalign learns a reward and a policy together from demonstrations, on Ray."""

__version__ = "0.1.0"
