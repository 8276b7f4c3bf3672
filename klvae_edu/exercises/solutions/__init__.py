"""Solutions of the exercises, one module for each notebook. `tools.solutions` writes them from the notebooks."""
