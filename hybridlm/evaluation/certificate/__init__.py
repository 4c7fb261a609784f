"""The finite automaton inside a trained model, read out and compared with the one that it was to learn."""
