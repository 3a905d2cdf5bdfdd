"""A machine-learning project: prepare the data, train, evaluate, predict."""
