"""What finished runs come to: tables, differences, intervals, the paper's numbers, figures."""
