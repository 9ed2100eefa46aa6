"""Many runs: seeds, ablation, comparison, search."""
