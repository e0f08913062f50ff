"""What billing knows: pure rules, standard library only; no clock, network, randomness or logging."""
