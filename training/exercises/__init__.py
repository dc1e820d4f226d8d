"""Generated exercises: word problems, multiple choice, short chat turns.

Everything is drawn from a seed. A third of each kind's templates and all numbers of the tests are held out: a
combination of numbers belongs to the training or to the test part for good (split.py), whatever the template.
"""
