"""What holds a training near the model it began with."""
