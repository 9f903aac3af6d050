"""What a training set is worth: students, baselines, statistics, report. Knows tables and arrays only."""
