"""Side-by-side measurements of `torchport serve`, TorchServe, Triton and others: `make bench`.

    python -m bench                      # all six parts, an hour
    python -m bench --only A --seconds 1 --rounds 2

docs/benchmarks.md says what is measured, how, and what each figure is to reach.
"""
