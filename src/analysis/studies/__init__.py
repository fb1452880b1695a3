"""What a sweep can show at its end: ``report=crossover`` is ``crossover.py``'s ``study``, and so on."""
