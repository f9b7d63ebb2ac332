"""Lessons: each file opens with how to run it and what you will see."""
