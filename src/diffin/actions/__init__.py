"""What to do about the answer: clean a training set, delete samples from a model, select what to train on."""
