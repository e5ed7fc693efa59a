"""One step of the training: from a batch to gradients."""
