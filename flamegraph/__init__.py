"""From a profile of named frames to pictures and text. Imports no BPF; runs anywhere."""
