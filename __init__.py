"""xrlflow: make neural networks faster without changing what they compute."""
