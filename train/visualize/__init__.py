"""Pictures of the kernels that a trained network gives real videos, after appendix A.4 of the paper."""
