"""Build host only: published weights to a .rknn bundle with measured fidelity."""
