"""A model of one NVIDIA multiprocessor that runs the compiled kernels' machine code: `python -m bench predict`.

`sass` reads machine code with its control codes, `walk` follows the warps of one program through it, `integers` is the
arithmetic that decides branches and addresses, `model` predicts the time of what was walked.
"""
