"""Accuracy, clean and under attack, certificates, corruptions, and the verdicts on all of them."""
