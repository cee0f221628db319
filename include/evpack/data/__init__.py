"""Evaluation text to windows of token ids: read, tokenise, chunk, schedule, store.

Only `setup_baseline` reads texts and tokenises; every later step reads the stored windows.
"""
