"""Dead letters: look at them, give them another chance, or drop them."""

from mesh.dead.letters import ID, Actor, ChosenLetters, DeadLetter, DeadLetters, LetterGroup, Report

__all__ = ["ID", "Actor", "ChosenLetters", "DeadLetter", "DeadLetters", "LetterGroup", "Report"]
