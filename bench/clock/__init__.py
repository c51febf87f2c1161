"""Time: pairs of a step and the read roof, rounds of several programs, kernel boundaries, statistics of samples."""
