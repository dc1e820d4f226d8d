"""Makes the demo Mixture-of-Experts model from a small dense one; see README.md."""
