"""The demo: synthetic videos, two networks trained side by side on them, and pictures of what they learned."""
