"""What is compared: ours, the peers, the baselines."""
