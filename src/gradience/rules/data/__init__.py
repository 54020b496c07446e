"""Rules on a data set: what the loss sees of it, what the length limit costs, what its rows hold."""
