"""Planted bugs of data, tokenizer, template and evaluation."""

from kat.verify.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = ()
