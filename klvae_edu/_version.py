"""The version, apart from the package's `__init__`, so that building a wheel imports no torch."""

__version__ = "0.1.0"
