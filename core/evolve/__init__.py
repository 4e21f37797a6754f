"""Ask-tell optimizers, transfer injection, and the one search loop that structure and system level share."""
