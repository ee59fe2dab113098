"""Every planted bug."""

from kat.verify.mutants import model, rl, text, training
from kat.verify.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (*text.MUTANTS, *model.MUTANTS, *training.MUTANTS, *rl.MUTANTS)
