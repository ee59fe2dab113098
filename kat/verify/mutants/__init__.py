"""Every planted bug."""

from kat.verify.mutants import density, model, reward, rl, text, training
from kat.verify.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *text.MUTANTS,
    *model.MUTANTS,
    *training.MUTANTS,
    *reward.MUTANTS,
    *density.MUTANTS,
    *rl.MUTANTS,
)
