"""bpflame: where a Linux system spends its time, in one picture that can be trusted."""

__version__ = "0.1.0"
