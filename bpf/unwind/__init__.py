"""Tables to unwind user stacks with, from ``.eh_frame`` to what BPF programs search."""
