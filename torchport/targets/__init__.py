"""Where an archive runs: starts servers as child processes, and writes `serving.json` from their answers."""
