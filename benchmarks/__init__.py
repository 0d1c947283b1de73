"""How bpflame compares with its peers, measured side by side."""
