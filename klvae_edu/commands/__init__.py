"""Commands of `klvae`: each module has a dataclass of options, and `run_…(options)`, which returns the exit code.

These modules are imported at every start of the program. Large packages are therefore imported where they are used.
"""
