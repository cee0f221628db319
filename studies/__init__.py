"""Proof that the intervals and guards do what the tier data says of them: `make study`, then docs/guards.md."""
