"""Networks: the student, the teacher, their binning head; loading weights."""
