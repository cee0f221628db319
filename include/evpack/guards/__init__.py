"""Guards: each compares a subject with its baseline and says what it found. One file per guard."""
