"""What a criterion uses to distil: the student's pass, the teacher, the terms of the loss."""
