"""Distillation losses, one file each; :mod:`core.distill.interface` says what a loss sees."""
