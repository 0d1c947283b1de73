"""Recorders: they attach BPF programs, wait, drain the maps, and account for what was lost."""
