// Replaced by the communicator.
