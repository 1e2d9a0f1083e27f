"""What a study trains: the contract of a workload, its batches, its random numbers."""
