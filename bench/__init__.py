"""`python -m bench`: what a kernel developer profiles with."""
