"""The commands of `klvae`, a module each: its options, a dataclass, and `run_…(options)`, which gives the exit code.

These modules are imported at every start of the program, so what is heavy is imported where it is used.
"""
