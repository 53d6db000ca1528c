"""What train_example.py is made of: one distillation experiment on real images, from the options to the figures.

Data flows one way: options -> experiment -> (data, networks, losses, teacher, trainer, state) -> report, figures.
"""
