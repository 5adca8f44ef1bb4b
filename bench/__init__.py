"""Side-by-side measurements of `torchport serve`, TorchServe, Triton, mosec and bare uvicorn: `make bench`.

    python -m bench                      # all five parts, half an hour
    python -m bench --only A --seconds 1 --rounds 2

docs/benchmarks.md says what is measured, how, and what each figure is to reach.
"""
