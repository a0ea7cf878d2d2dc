"""Callbacks that record the trainings of other libraries' trainers. Each module imports its library, so import it by name."""
