"""The model store: its folders, atomically written files, digests, and the stages' records."""
