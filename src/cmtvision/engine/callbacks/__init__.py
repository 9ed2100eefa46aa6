"""What happens around the steps of a run, one duty each."""
