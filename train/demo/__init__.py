"""The demo: synthetic videos, networks trained side by side on them, and pictures of what they learned."""
