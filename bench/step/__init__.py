"""One decode step: the model's operations composed over rings of weights, its reuse distance, its numerical gate."""
