"""Planted bugs of loss, optimiser, schedule, resume and two processes."""

from kat.verify.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
