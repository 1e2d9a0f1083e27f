"""What is asked, and which points follow from it: the study file, its space, its samplers."""
