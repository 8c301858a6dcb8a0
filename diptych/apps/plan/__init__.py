"""What a recipe will take before it is run: parameters, memory, time, and what holds it back."""
