"""Planted bugs of the forward pass, the cache and generation."""

from kat.verify.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
