"""The loaded weights and how they run: knows texts and vectors, no framework."""
