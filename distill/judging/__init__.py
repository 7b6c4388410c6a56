"""What a distilled set is worth: its students under attack, a verdict on each number."""
