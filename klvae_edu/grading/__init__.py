"""Grade handed-in notebooks. A hand-in is a stranger's program: its process answers questions, and never judges.

klvae grade                        one process for each hand-in, behind fences
reads the notebook, sends it  -->  runs the cells
judges  <--  `check` was called
a recipe and values           -->  applies it to the answer
compares the values           <--  values
writes the table
"""

from klvae_edu.grading.judging import Grade, Limits, grade
from klvae_edu.grading.reading import hand_ins

__all__ = ["Grade", "Limits", "grade", "hand_ins"]
